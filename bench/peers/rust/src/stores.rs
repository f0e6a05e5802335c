//! The three logs, each used as its own documentation recommends.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use okaywal::{Entry, LogManager, SegmentReader, WriteAheadLog};
use wal_db::{Wal, WalConfig};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::{Failure, Job};

const RECORD_BYTES_MAX: u32 = 16 << 20;
/// Before this, okaywal would checkpoint, that is, drop what is to be read back.
const OKAYWAL_SEGMENT_BYTES: u32 = 1 << 30;
const TOPIC: &str = "bench";
const WALRUS_READ_BYTES: usize = 64 << 20;

pub trait Store: Sync {
    fn append(&self, data: &[u8]) -> Result<(), Failure>;
    fn append_batch(&self, batch: &[&[u8]]) -> Result<(), Failure>;
    fn append_durable(&self, data: &[u8]) -> Result<(), Failure>;
}

pub fn open(job: &Job, durable: bool) -> Result<Box<dyn Store>, Failure> {
    match job.peer.as_str() {
        "wal-db" => Ok(Box::new(open_wal_db(job)?)),
        "okaywal" => Ok(Box::new(open_okaywal(job, Reader::default())?)),
        "walrus" => Ok(Box::new(open_walrus(job, durable)?)),
        other => Err(format!("no peer {other}").into()),
    }
}

pub fn read(job: &Job, each: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
    match job.peer.as_str() {
        "wal-db" => {
            for record in open_wal_db(job)?.iter()? {
                each(record?.data());
            }
        }
        "okaywal" => {
            let reader = Reader::default();
            let _log = open_okaywal(job, reader.clone())?;
            reader.0.lock().expect("poisoned").iter().for_each(|data| each(data));
        }
        _ => {
            let log = open_walrus(job, false)?;
            loop {
                let entries = log.batch_read_for_topic(TOPIC, WALRUS_READ_BYTES, true)?;
                if entries.is_empty() {
                    break;
                }
                entries.iter().for_each(|entry| each(&entry.data));
            }
        }
    }
    Ok(())
}

// wal-db: append reaches the page cache; append_and_sync is its group commit.

fn open_wal_db(job: &Job) -> Result<Wal, Failure> {
    let path = PathBuf::from(&job.dir).join("log.wal");
    Ok(Wal::open_with(path, WalConfig::new().with_max_record_size(RECORD_BYTES_MAX))?)
}

impl Store for Wal {
    fn append(&self, data: &[u8]) -> Result<(), Failure> {
        let _lsn = Wal::append(self, data)?;
        Ok(())
    }

    fn append_batch(&self, _batch: &[&[u8]]) -> Result<(), Failure> {
        Err("wal-db has no batches".into())
    }

    fn append_durable(&self, data: &[u8]) -> Result<(), Failure> {
        let _lsn = self.append_and_sync(data)?;
        Ok(())
    }
}

// okaywal: a commit is always durable; a batch is one entry of many chunks.

#[derive(Clone, Debug, Default)]
struct Reader(Arc<Mutex<Vec<Vec<u8>>>>);

impl LogManager for Reader {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        if let Some(chunks) = entry.read_all_chunks()? {
            self.0.lock().expect("poisoned").extend(chunks);
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last: okaywal::EntryId,
        _entries: &mut SegmentReader,
        _log: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

fn open_okaywal(job: &Job, reader: Reader) -> Result<WriteAheadLog, Failure> {
    let configuration = okaywal::Configuration::default_for(&job.dir)
        .preallocate_bytes(OKAYWAL_SEGMENT_BYTES)
        .checkpoint_after_bytes(u64::from(OKAYWAL_SEGMENT_BYTES) * 4);
    Ok(configuration.open(reader)?)
}

impl Store for WriteAheadLog {
    fn append(&self, data: &[u8]) -> Result<(), Failure> {
        self.append_durable(data)
    }

    fn append_batch(&self, batch: &[&[u8]]) -> Result<(), Failure> {
        let mut entry = self.begin_entry()?;
        for data in batch {
            entry.write_chunk(data)?;
        }
        entry.commit()?;
        Ok(())
    }

    fn append_durable(&self, data: &[u8]) -> Result<(), Failure> {
        let mut entry = self.begin_entry()?;
        entry.write_chunk(data)?;
        entry.commit()?;
        Ok(())
    }
}

// walrus: one topic, so that there is one order; its data directory comes from the environment.

fn open_walrus(job: &Job, durable: bool) -> Result<Walrus, Failure> {
    std::env::set_var("WALRUS_DATA_DIR", &job.dir);
    std::env::set_var("WALRUS_QUIET", "1");
    let schedule = if durable { FsyncSchedule::SyncEach } else { FsyncSchedule::NoFsync };
    let consistency = ReadConsistency::AtLeastOnce { persist_every: 1_000_000 };
    Ok(Walrus::with_consistency_and_schedule(consistency, schedule)?)
}

impl Store for Walrus {
    fn append(&self, data: &[u8]) -> Result<(), Failure> {
        Ok(self.append_for_topic(TOPIC, data)?)
    }

    fn append_batch(&self, batch: &[&[u8]]) -> Result<(), Failure> {
        loop {
            match self.batch_append_for_topic(TOPIC, batch) {
                // Another thread's batch is under way; it leaves waiting to the caller.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                done => return Ok(done?),
            }
        }
    }

    fn append_durable(&self, data: &[u8]) -> Result<(), Failure> {
        Ok(self.append_for_topic(TOPIC, data)?)
    }
}
