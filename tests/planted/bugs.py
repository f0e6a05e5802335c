"""The planted bugs: each is one rule of the log left out, and the test that has to see it.

A bug is text of the present sources replaced by other text.  What is replaced must be there
exactly once, so that the list cannot rot unseen.  `WORST` are the mistakes that logs of this
kind are known for; `MENDED` are those that were once made here.

    caught_by    pytest's name of what must fail, from tests/ on
"""

from __future__ import annotations

from dataclasses import dataclass

from support.steps import Mutation


@dataclass(frozen=True)
class Bug:
    """One rule left out."""

    name: str
    caught_by: str
    changes: tuple[Mutation, ...]


def bug(name: str, caught_by: str, *changes: tuple[str, str, str]) -> Bug:
    return Bug(name, caught_by, tuple(Mutation(f"shmlog/{file}", old, new) for file, old, new in changes))


INTERLEAVE = "interleave/test_every_interleaving.py::test_no_interleaving_loses_a_record_or_gets_stuck"
FRAMES = "fuzz/test_fuzz_frames.py::test_mutated_frames_are_read_as_the_format_page_says"
RESTART = "crash/test_restart.py::test_"
FAILING_DISK = "crash/test_failing_disk.py::test_"
FLUSHER_DEATH = "process/test_flusher_death.py::test_"
SCRIBBLED = (
    "process/test_scribbled_block.py::test_a_scribbled_word_ends_every_call_and_costs_no_durable_record"
)
ATTACHMENT = "process/test_attachment.py::test_"
SURVIVOR = "process/test_survivor.py::test_"
ORIGINS = "process/test_origins.py::test_"
FAILING_FLUSHER = "process/test_failing_flusher.py::test_"

SYNC = """        int error = write_at(fds[i], mark, mark_bytes, mark_offset);
        if (!error)
            error = data_sync(fds[i]);
"""
DURABLE = """    atomic_store(durable, target); /* DURABLE */
"""
FILL_ABOVE = """            if first == last:
                files.zero(fd, SEGMENT_HEADER_BYTES + end - first, geometry.file_bytes)
"""
CLAIM_BEGIN = """        SHMLOG_STEP("claim begin");
        atomic_store_explicit(word_at(t->claim, CL_BEGIN), pos, memory_order_release);
"""
TAKE_OVER = """        self._suspect_lsn = max(self._native.load(CB.PREPARED_LSN), self._control.reserved_lsn)
"""
FILES_OPEN = """OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)
"""
LONG_SUM = "FRAME_HEADER_BYTES + payload_bytes + GRANULE_BYTES - 1) & ~(uint64_t)("
SHORT_SUM = "FRAME_HEADER_BYTES + (uint32_t)payload_bytes + GRANULE_BYTES - 1) & ~("
NO_TRACKER = """        untracked = types.SimpleNamespace(register=lambda *_: None)
"""

WORST = (
    bug(
        "durable is said before the sync",
        "unit/native/test_sync.py::test_every_segment_that_a_sync_covers_is_synced_before_anything_is_durable",
        ("native/core/sync.h", DURABLE, ""),
        (
            "native/core/sync.h",
            "    atomic_store(intent, target);\n",
            "    atomic_store(intent, target);\n" + DURABLE,
        ),
    ),
    bug(
        "a failed sync is tried again",
        "unit/native/test_sync.py::test_a_sync_that_failed_is_never_tried_again_and_leaves_its_intent",
        (
            "native/core/sync.h",
            "            error = data_sync(fds[i]);\n",
            "            error = data_sync(fds[i]) ? data_sync(fds[i]) : 0;\n",
        ),
    ),
    bug(
        "a successor trusts descriptors of its own",
        f"{FLUSHER_DEATH}a_successor_writes_anew_what_the_dead_flusher_may_have_synced",
        ("flusher/syncing.py", TAKE_OVER, "        self._suspect_lsn = 0\n"),
    ),
    bug(
        "bits are set before the copy",
        f"{INTERLEAVE}[SMALL]",
        (
            "native/core/append.h",
            """        outcome = fill(w, plan, t, lsns);
    if (outcome == OUTCOME_DONE)
        outcome = publish(w, t, plan->count, plan->payload_bytes);
""",
            """        outcome = publish(w, t, plan->count, plan->payload_bytes);
    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
""",
        ),
    ),
    bug(
        "bits are published without an order",
        "native/test_core_program.py::test_the_core_alone_does_what_it_says[thread-publication]",
        (
            "native/core/bitmap.h",
            "low_mask & high_mask, memory_order_seq_cst)",
            "low_mask & high_mask, memory_order_relaxed)",
        ),
    ),
    bug(
        "the low bits are set first",
        f"{INTERLEAVE}[WORDS]",
        (
            "native/core/bitmap.h",
            """    SHMLOG_STEP("publish high");
    atomic_fetch_or_explicit(&words[high], high_mask, memory_order_release);
""",
            """    SHMLOG_STEP("publish low");
    atomic_fetch_or_explicit(&words[low], low_mask, memory_order_seq_cst);
""",
        ),
        (
            "native/core/bitmap.h",
            """    SHMLOG_STEP("publish low");
    atomic_fetch_or_explicit(&words[low], low_mask, memory_order_seq_cst);
    return OUTCOME_DONE;
""",
            """    SHMLOG_STEP("publish high");
    atomic_fetch_or_explicit(&words[high], high_mask, memory_order_release);
    return OUTCOME_DONE;
""",
        ),
    ),
    bug(
        "a claim is made after the reservation",
        f"{INTERLEAVE}[SMALL]",
        ("native/core/append.h", CLAIM_BEGIN, ""),
    ),
    bug(
        "a hole is repaired after a time, not a death",
        "process/test_killed_writers.py::test_a_stopped_writer_is_never_overwritten_and_named_when_the_window_is_full",
        (
            "flusher/holes.py",
            "        if claim.begin == g and alive:\n",
            "        if claim.begin == g and alive and not time.sleep(1):\n            break\n"
            "        if claim.begin == g and alive:\n",
        ),
    ),
    bug(
        "the scan passes a writer that is still copying",
        f"{INTERLEAVE}[SMALL]",
        (
            "native/core/bitmap.h",
            "        uint64_t stop = (word ^ flip) >> (at & 63);\n",
            "        uint64_t stop = set || !(word >> (at & 63) >> 1) ? (word ^ flip) >> (at & 63) : 0;\n",
        ),
    ),
    bug(
        "a mark says what its own sync will make durable",
        f"{RESTART}a_mark_vouches_only_for_what_an_earlier_sync_made_durable",
        (
            "flusher/syncing.py",
            "        self.mark = self._vouching(durable, trimmed)\n",
            "        self.mark = self._vouching(target, trimmed)\n",
        ),
    ),
    bug(
        "a new segment's name is not synced",
        "unit/disk/test_new_segment.py::test_a_new_segments_name_is_synced_after_it_was_given",
        (
            "disk/segment.py",
            "            files.sync_directory(os.path.dirname(path))\n",
            "            pass\n",
        ),
    ),
    bug(
        "shared memory is sized, not allocated",
        "process/test_space.py::test_a_full_dev_shm_is_an_os_error_at_open_and_never_a_signal",
        (
            "memory/block.py",
            "            os.posix_fallocate(block._fd, 0, size)\n",
            "            os.ftruncate(block._fd, size)\n",
        ),
    ),
    bug(
        "recovery leaves what it drops",
        f"{RESTART}dropped_records_never_come_back_after_less_was_appended",
        ("disk/recovery.py", FILL_ABOVE, ""),
    ),
    bug(
        "the checksum leaves the LSN out",
        FRAMES,
        (
            "native/core/frame.h",
            "    memcpy(rest + 4, &f->lsn, 24);\n",
            "    memset(rest + 4, 0, 8);\n    memcpy(rest + 12, &f->time_ns, 16);\n",
        ),
    ),
    bug(
        "the checksum of an empty frame is 0",
        FRAMES,
        (
            "native/core/frame.h",
            "    return crc32c(payload_crc, rest, sizeof rest);\n",
            "    return f->payload_bytes ? crc32c(payload_crc, rest, sizeof rest) : 0;\n",
        ),
    ),
    bug(
        "a length is read again after its check",
        "fuzz/test_fuzz_frames.py::test_a_length_that_changes_while_it_is_read_is_read_once",
        (
            "native/core/frame.h",
            "        uint64_t bytes = frame_bytes(f.payload_bytes);\n        lsn += bytes;\n",
            "        uint64_t bytes = frame_bytes(*(const volatile uint32_t *)(base + (lsn - base_lsn)));\n"
            "        lsn += bytes;\n",
        ),
    ),
    bug(
        "the resource tracker is left on",
        "process/test_many_writers.py::test_an_attacher_that_exits_does_not_take_the_control_block_with_it",
        (
            "memory/block.py",
            NO_TRACKER,
            "        untracked = shared_memory.resource_tracker\n",
        ),
    ),
    bug(
        "a child keeps its parent's locks",
        "process/test_forks.py::test_a_parents_death_is_noticed_though_its_child_lives_on_and_never_used_the_log",
        ("native/core/fork.c", "        if (fd >= 0)\n            close(fd);\n", "        (void)fd;\n"),
    ),
    bug(
        "locks are the process's, not the open file's",
        "unit/system/test_locks.py::test_a_lock_is_seen_by_other_open_files_and_not_by_its_own",
        ("native/python/system.c", "lock_call(fd, F_OFD_SETLK, F_WRLCK,", "lock_call(fd, F_SETLK, F_WRLCK,"),
    ),
    bug(
        "a segment is made under its own name",
        "unit/disk/test_new_segment.py::test_a_segment_whose_making_was_interrupted_has_no_segments_name",
        ("disk/segment.py", '    temporary = path + ".tmp"\n', "    temporary = path\n"),
    ),
    bug(
        "a trim cuts files that are still viewed",
        "process/test_trim.py::test_a_view_of_a_trimmed_segment_keeps_its_bytes",
        (
            "flusher/open_segments.py",
            """        for first in below:
            os.unlink(segment_path(self._directory, first))
""",
            """        for first in below:
            os.truncate(segment_path(self._directory, first), 0)
            os.unlink(segment_path(self._directory, first))
""",
        ),
    ),
    bug(
        "nobody asks whose the shared memory is",
        f"{ATTACHMENT}another_users_block_squatting_the_name_is_refused_and_left_alone",
        ("memory/block.py", "    _check_owner(name, found, mode)\n    if", "    if"),
    ),
    bug(
        "links are followed",
        f"{ATTACHMENT}a_symbolic_link_in_place_of_a_file_is_refused_and_its_target_untouched",
        ("system/files.py", FILES_OPEN, FILES_OPEN.replace("os.O_NOFOLLOW | ", "")),
    ),
    bug(
        "lengths are summed in 32 bits",
        FRAMES,
        (
            "native/core/frame.h",
            LONG_SUM,
            SHORT_SUM,
        ),
    ),
    bug(
        "the older of two dirty segments is not synced",
        "unit/native/test_sync.py::test_every_segment_that_a_sync_covers_is_synced_before_anything_is_durable",
        (
            "native/core/sync.h",
            "            error = data_sync(fds[i]);\n",
            "            error = i + 1 < count ? 0 : data_sync(fds[i]);\n",
        ),
    ),
    bug(
        "a sync does nothing",
        "unit/native/test_sync.py::test_every_segment_that_a_sync_covers_is_synced_before_anything_is_durable",
        ("native/core/sync.h", SYNC, SYNC.replace("data_sync(fds[i])", "fds[i] < 0")),
    ),
)

MENDED = (
    bug(
        "a failed sync is forgotten with the control block",
        f"{FAILING_DISK}what_a_failed_sync_left_in_memory_is_on_disk_once_recovery_vouches_for_it",
        (
            "flusher/syncing.py",
            "        self._segments.note_failure(Failure(error, lsn))\n",
            "        pass\n",
        ),
    ),
    bug(
        "a successor distrusts only what was reserved",
        f"{FLUSHER_DEATH}a_successor_writes_anew_what_the_dead_flusher_may_have_synced",
        ("flusher/syncing.py", TAKE_OVER, "        self._suspect_lsn = self._control.reserved_lsn\n"),
    ),
    bug(
        "a lock is held while a segment is mapped",
        "process/test_reentrance.py::test_an_append_that_interrupts_the_mapping_of_a_segment_goes_through",
        (
            "handle/appending.py",
            "            mapping = map_segment(self._directory, lsn, writable=True)\n",
            "            with self.__dict__.setdefault('lock', __import__('threading').Lock()):\n"
            "                mapping = map_segment(self._directory, lsn, writable=True)\n",
        ),
    ),
    bug(
        "a forked child reads with its parent's reader",
        "process/test_reentrance.py::test_a_fork_while_another_thread_maps_a_segment_leaves_the_child_able_to_read",
        (
            "handle/log.py",
            """        self._make_locks()
        self._reader = Reader(self._directory)

    def _attached""",
            """        self._make_locks()

    def _attached""",
        ),
        (
            "disk/segments.py",
            "        self._mappings: OrderedDict[int, _native.Mapping] = OrderedDict()\n",
            "        self._mappings: OrderedDict[int, _native.Mapping] = OrderedDict()\n"
            "        self._lock = __import__('threading').Lock()\n",
        ),
        (
            "disk/segments.py",
            "            mapping = self._mappings[number] = map_segment(self._directory, lsn,",
            "            with self._lock:\n"
            "                mapping = self._mappings[number] = map_segment(self._directory, lsn,",
        ),
    ),
    bug(
        "the lease is given up while a loop lives",
        "process/test_flusher_lease.py::test_a_flusher_whose_sync_is_stuck_keeps_its_lease_until_the_sync_ends",
        (
            "flusher/flusher.py",
            "                    self._outlive(thread)\n",
            "                    thread.join(1.0)\n",
        ),
    ),
    bug(
        "the last close does not wait for durability",
        "process/test_close.py::test_the_last_close_beside_a_staying_flusher_returns_when_all_is_durable",
        (
            "session/departure.py",
            "        if stays and (control.failed or control.durable_lsn >= reserved):\n",
            "        if stays:\n",
        ),
    ),
    bug(
        "a flusher inherits descriptors",
        "process/test_started_flusher.py::test_a_started_flusher_holds_no_descriptor_of_the_one_that_started_it",
        ("cli/upkeep.py", "        sidecar.close_inherited()\n", "        pass\n"),
    ),
    bug(
        "a link leads to the segments",
        "process/test_started_flusher.py::test_a_log_whose_segments_are_elsewhere_is_refused",
        ("disk/directory.py", "    files.check_part(where.segments_path, owner)\n", ""),
    ),
    bug(
        "the holder of the set-up byte is waited for without an end",
        "process/test_setup.py::test_a_process_frozen_in_the_set_up_is_named_to_whoever_waits_for_it",
        (
            "system/locks.py",
            "    if not poll(lambda: lock.try_lock(SETUP_BYTE), deadline):\n",
            "    if not poll(lambda: lock.try_lock(SETUP_BYTE), deadline + 3600):\n",
        ),
    ),
    bug(
        "an overwritten wanted_trimmed is obeyed",
        f"{SCRIBBLED}[WANTED_TRIMMED-2**62]",
        ("flusher/syncing.py", "        if before > committed:  # no", "        if before < 0:  # no"),
    ),
    bug(
        "an overwritten reserved_lsn is believed",
        f"{SCRIBBLED}[RESERVED_LSN-zero]",
        (
            "native/core/append.h",
            "        int damaged = end < pos || pos < floor || (pos & (GRANULE_BYTES - 1)); /* A6 */\n",
            "        int damaged = 0 && floor;\n",
        ),
    ),
    bug(
        "an overwritten committed_lsn is believed",
        "process/test_scribbled_block.py::test_watermarks_out_of_order_are_damage_that_a_reader_is_told_of",
        (
            "memory/control.py",
            "    if not trimmed <= durable",
            "    if trimmed < 0 and not trimmed <= durable",
        ),
    ),
    bug(
        "an identity of many brackets is a RecursionError",
        "unit/format/test_identity.py::test_what_is_no_identity_at_all_is_a_format_error",
        (
            "format/identity.py",
            "    except (ValueError, RecursionError) as error:\n",
            "    except ValueError as error:\n",
        ),
    ),
    bug(
        "a header's length is believed by the walk's memory",
        "unit/disk/test_walk.py::test_a_frame_that_claims_a_whole_sparse_segment_takes_no_memory",
        (
            "disk/walk.py",
            "        crc = self._seed\n        if kind == _KIND_DATA:\n",
            "        crc = self._seed\n        if kind == _KIND_DATA:\n            bytes(payload_bytes)\n",
        ),
    ),
    bug(
        "a search sums every payload in full",
        "unit/disk/test_walk.py::test_a_search_through_baits_takes_time_linear_in_their_bytes",
        (
            "disk/walk.py",
            "self._sums.crc(self._seed, offset + FRAME_HEADER_BYTES, payload_bytes)",
            "_native.crc32c(os.pread(fd, payload_bytes, offset + FRAME_HEADER_BYTES), self._seed)",
        ),
    ),
    bug(
        "a mode lets everybody write",
        "process/test_bad_input.py::test_a_wrong_option_is_refused_and_makes_no_log",
        ("system/files.py", "isinstance(mode, int) or mode & ~0o664 or", "isinstance(mode, int) or"),
    ),
    bug(
        "a mark is written from watermarks that are out of order",
        "unit/flusher/test_marks.py::test_no_mark_is_written_from_watermarks_that_are_out_of_order",
        (
            "flusher/syncing.py",
            "        trimmed, _ = self._control.bounds()  # S4\n",
            "        trimmed = self._control.trimmed_lsn\n",
        ),
    ),
    bug(
        "an append maps segments for ever",
        "process/test_scribbled_block.py"
        "::test_an_append_ends_though_its_tail_was_overwritten_and_put_right_again",
        (
            "handle/appending.py",
            "            if time.monotonic() >= deadline + grace_s:\n",
            "            if lsn < committed and time.monotonic() >= deadline + grace_s:\n",
        ),
    ),
    bug(
        "an errno that no system has is an OverflowError",
        "unit/test_errors.py::test_an_errno_that_no_system_has_is_told_as_it_is",
        ("errors.py", "    except OverflowError:\n", "    except KeyError:\n"),
    ),
    bug(
        "a range may end at the last LSN there is",
        "fuzz/test_fuzz_frames.py::test_a_range_up_to_the_last_lsn_there_is_is_refused",
        ("native/python/frames.c", "        end <= NO_LSN - (GRANULE_BYTES - 1) && begin", "        begin"),
    ),
    bug(
        "a control block that nobody guarded is believed",
        f"{SURVIVOR}files_that_lost_what_was_durable_are_refused_and_not_touched",
        (
            "session/attachment.py",
            "None if somebody_lives(lock) else _doubt(directory, control, mode, make)",
            "_doubt(directory, control, mode, make) if control.failed else None",
        ),
    ),
    bug(
        "what a successor makes durable is not read again",
        f"{SURVIVOR}a_successor_beside_a_live_writer_calls_nothing_durable_that_the_files_have_not",
        (
            "flusher/open_segments.py",
            "        if walk.end_lsn < end:\n",
            "        if walk.end_lsn < begin:\n",
        ),
    ),
    bug(
        "recovery vouches for what has left memory",
        f"{FAILING_DISK}recovery_vouches_for_nothing_that_left_memory_after_it_was_checked",
        ("disk/recovery.py", "    _check_again(directory, found)\n", ""),
    ),
    bug(
        "what was rewritten is not read back from the disk",
        "unit/disk/test_rewriting.py::test_a_disk_that_has_other_bytes_than_memory_is_an_error",
        (
            "disk/rewriting.py",
            "        if found[: end - begin] != data[: end - begin]:\n",
            "        if not found:\n",
        ),
    ),
    bug(
        "a copy is taken for the log itself",
        f"{ORIGINS}a_copy_made_while_a_record_was_written_is_refused_and_not_filled",
        (
            "format/origin.py",
            "    return found if here else Since.COPIED\n",
            "    return found if here or then.inode else Since.COPIED\n",
        ),
    ),
    bug(
        "a container's boot id is taken for the kernel's",
        f"{ORIGINS}a_container_that_starts_again_with_another_boot_id_loses_no_append_that_returned",
        (
            "format/origin.py",
            "    elif then.kernels and now.kernels:\n",
            "    elif then.kernels or not now.kernels:\n",
        ),
    ),
    bug(
        "both marks are in one sector",
        "unit/format/test_layout.py"
        "::test_each_4096_byte_sector_before_the_frames_holds_one_header_and_one_mark",
        ("format/marks.py", "(512, SECTOR_BYTES + 512))", "(512, 1024))"),
    ),
    bug(
        "names that a killed maker left are not made durable",
        "crash/test_power.py::test_names_that_a_killed_process_left_are_made_durable_by_the_next",
        ("disk/recovery.py", "    directory.sync_names()\n", ""),
    ),
    bug(
        "a segment that cannot be looked at is taken for missing",
        "unit/flusher/test_open_segments.py::test_a_segment_that_cannot_be_looked_at_is_not_taken_for_missing",
        (
            "flusher/open_segments.py",
            "        except FileNotFoundError:\n            return False",
            "        except OSError:\n            return False",
        ),
    ),
    bug(
        "flushers that fail are started at full speed",
        f"{FAILING_FLUSHER}flushers_that_fail_at_start_are_started_ever_less_often_and_the_waiter_is_told",
        (
            "session/flushers.py",
            "    return min(most, first * 2.0 ** min(16, max(0, starts - 1)))\n",
            "    return min(most, first * 1.0 ** starts)\n",
        ),
    ),
    bug(
        "a failure that a writer found leaves no note",
        f"{FAILING_FLUSHER}a_writer_that_finds_the_log_failed_has_a_note_left_by_the_flusher",
        ("flusher/syncing.py", "        if control.failed and not control.lost:", "        if control.lost:"),
    ),
    bug(
        "a thread that fails the log deadlocks with its signal handler",
        f"{FAILING_FLUSHER}a_signal_handler_that_fails_the_log_may_interrupt_whoever_holds_the_step_lock",
        ("memory/control.py", "self._step_lock = threading.RLock()", "self._step_lock = threading.Lock()"),
    ),
)

BUGS = WORST + MENDED
