package bench;

import io.aeron.Aeron;
import io.aeron.FragmentAssembler;
import io.aeron.Publication;
import io.aeron.Subscription;
import io.aeron.archive.Archive;
import io.aeron.archive.ArchiveThreadingMode;
import io.aeron.archive.ArchivingMediaDriver;
import io.aeron.archive.client.AeronArchive;
import io.aeron.archive.codecs.SourceLocation;
import io.aeron.archive.status.RecordingPos;
import io.aeron.driver.MediaDriver;
import io.aeron.driver.ThreadingMode;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import org.agrona.concurrent.UnsafeBuffer;
import org.agrona.concurrent.status.CountersReader;

/**
 * Aeron Archive recording an IPC stream. An append is done when it has been offered, the job when it
 * has been recorded; a durable append when the recording, synced at level 1, has passed it.
 */
final class AeronArchiveStore implements Store {
    private static final int REPLAY_STREAM = 1002;
    private static final int FRAGMENTS = 64;
    private static final String REMOTE = "aeron:udp?endpoint=localhost:0";

    private final ArchivingMediaDriver driver;
    private final AeronArchive archive;
    private final AtomicLong lastPosition = new AtomicLong();
    private Publication publication;
    private int positionCounter = CountersReader.NULL_COUNTER_ID;

    AeronArchiveStore(final Job job) {
        final String directory = AeronIpc.sharedMemory(job);
        final int syncLevel = job.durable() ? 1 : 0;
        driver = ArchivingMediaDriver.launch(
                new MediaDriver.Context()
                        .aeronDirectoryName(directory)
                        .dirDeleteOnStart(true)
                        .dirDeleteOnShutdown(true)
                        .threadingMode(ThreadingMode.SHARED),
                new Archive.Context()
                        .aeronDirectoryName(directory)
                        .archiveDir(job.directory().resolve("archive").toFile())
                        .controlChannelEnabled(false)
                        .archiveClientContext(
                                new AeronArchive.Context().controlResponseChannel(AeronIpc.CHANNEL))
                        .replicationChannel(REMOTE)
                        .fileSyncLevel(syncLevel)
                        .catalogFileSyncLevel(syncLevel)
                        .threadingMode(ArchiveThreadingMode.SHARED));
        archive = AeronArchive.connect(new AeronArchive.Context()
                .aeronDirectoryName(directory)
                .controlRequestChannel(AeronIpc.CHANNEL)
                .controlResponseChannel(AeronIpc.CHANNEL));
    }

    private synchronized Publication record() {
        if (publication == null) {
            archive.startRecording(AeronIpc.CHANNEL, AeronIpc.STREAM, SourceLocation.LOCAL);
            publication = archive.context().aeron().addPublication(AeronIpc.CHANNEL, AeronIpc.STREAM);
            final CountersReader counters = archive.context().aeron().countersReader();
            while (positionCounter == CountersReader.NULL_COUNTER_ID) {
                Thread.yield();
                positionCounter = RecordingPos.findCounterIdBySession(
                        counters, publication.sessionId(), archive.archiveId());
            }
        }
        return publication;
    }

    private void awaitRecorded(final long position) {
        final CountersReader counters = archive.context().aeron().countersReader();
        while (counters.getCounterValue(positionCounter) < position) {
            Thread.yield();
        }
    }

    @Override
    public Appender openAppender() {
        final Publication shared = record();
        return new Appender() {
            private final UnsafeBuffer buffer = new UnsafeBuffer(0, 0);
            private long position;

            @Override
            public void append(final byte[] data) {
                buffer.wrap(data);
                position = AeronIpc.offer(shared, buffer, data.length);
            }

            @Override
            public void appendDurable(final byte[] data) {
                append(data);
                awaitRecorded(position);
            }

            @Override
            public void close() {
                lastPosition.accumulateAndGet(position, Math::max);
            }
        };
    }

    @Override
    public long arrivedNs(final long lastAppendNs) {
        awaitRecorded(lastPosition.get());
        return System.nanoTime();
    }

    @Override
    public void read(final Consumer<byte[]> each) {
        final long[] found = {Aeron.NULL_VALUE};
        archive.listRecordings(
                0, 1, (session, correlation, recordingId, startTime, stopTime, start, stop, term, segment,
                        length, mtu, sessionId, stream, stripped, original, source) -> found[0] = recordingId);
        final long stop = archive.getStopPosition(found[0]);
        final byte[][] data = {new byte[0]};
        final FragmentAssembler assembler = new FragmentAssembler((buffer, offset, length, header) -> {
            if (data[0].length != length) {
                data[0] = new byte[length];
            }
            buffer.getBytes(offset, data[0]);
            each.accept(data[0]);
        });
        try (Subscription replay = archive.replay(found[0], 0, stop, AeronIpc.CHANNEL, REPLAY_STREAM)) {
            while (replay.hasNoImages()) {
                Thread.yield();
            }
            final var image = replay.imageAtIndex(0);
            while (image.position() < stop) {
                if (image.poll(assembler, FRAGMENTS) == 0) {
                    Thread.yield();
                }
            }
        }
    }

    @Override
    public void close() {
        archive.close();
        driver.close();
    }
}
