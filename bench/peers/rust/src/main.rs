//! The bench jobs on Rust write-ahead logs: one job a run, one line of JSON out.
//!
//!   bench-peers peer=wal-db job=append dir=D record_bytes=128 records_max=100000
//!               seconds=1 threads=2 batch=1 warmup=256 block=64
//!
//! Jobs: append, batch, durable, read, open. Prints "ready", waits for a line on
//! standard input, works, prints the result. Only the inner loop is timed, after
//! a warm-up in the same store that `counts` includes. None of these logs may be
//! opened by two processes, so the writers are threads of this one.

mod stores;

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use stores::Store;

pub type Failure = Box<dyn Error + Send + Sync>;

pub struct Job {
    pub peer: String,
    pub job: String,
    pub dir: String,
    record_bytes: usize,
    records_max: u64,
    seconds: Duration,
    threads: usize,
    batch: usize,
    warmup: u64,
    block: u64,
}

struct Span {
    begin: Instant,
    end: Instant,
    warmup: u64,
    records: u64,
    latencies_ns: Vec<u64>,
}

fn main() -> Result<(), Failure> {
    let job = parse()?;
    println!("ready");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    let line = match job.job.as_str() {
        "read" => read(&job)?,
        "open" => open(&job)?,
        _ => append(&job)?,
    };
    println!("{line}");
    Ok(())
}

fn parse() -> Result<Job, Failure> {
    let given: HashMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|each| each.split_once('=').map(|(name, value)| (name.into(), value.into())))
        .collect();
    let get = |name: &str| given.get(name).cloned().ok_or(format!("{name}= is missing"));
    Ok(Job {
        peer: get("peer")?,
        job: get("job")?,
        dir: get("dir")?,
        record_bytes: get("record_bytes")?.parse()?,
        records_max: get("records_max")?.parse()?,
        seconds: Duration::from_secs_f64(get("seconds")?.parse()?),
        threads: get("threads")?.parse()?,
        batch: get("batch")?.parse()?,
        warmup: get("warmup")?.parse()?,
        block: get("block")?.parse()?,
    })
}

/// The payloads that one writer cycles through; the same as in the Python part.
fn pool(writer: usize, record_bytes: usize) -> Vec<Vec<u8>> {
    let count = ((8 << 20) / record_bytes).clamp(4, 1024);
    let count = 1usize << count.ilog2();
    (0..count)
        .map(|index| {
            let mut data: Vec<u8> = (0..record_bytes).map(|j| ((31 * j + 7) % 256) as u8).collect();
            data[..4].copy_from_slice(&(writer as u32).to_le_bytes());
            data[4..8].copy_from_slice(&(index as u32).to_le_bytes());
            data
        })
        .collect()
}

fn append(job: &Job) -> Result<String, Failure> {
    let durable = job.job == "durable";
    let store = stores::open(job, durable)?;
    let barrier = Barrier::new(job.threads);
    let spans: Vec<Span> = thread::scope(|scope| {
        let workers: Vec<_> = (0..job.threads)
            .map(|writer| {
                let (store, barrier) = (&*store, &barrier);
                scope.spawn(move || {
                    let span = match job.job.as_str() {
                        "append" => feed(job, writer, barrier, |data| store.append(data[0])),
                        "batch" => feed(job, writer, barrier, |data| store.append_batch(data)),
                        _ => feed(job, writer, barrier, |data| store.append_durable(data[0])),
                    };
                    // At once: the others may be waiting for this one at the barrier.
                    span.unwrap_or_else(|error| {
                        eprintln!("{error}");
                        std::process::exit(1)
                    })
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    Ok(report(&spans))
}

/// Feed `append` until the job is over, `job.batch` records a call.
fn feed(
    job: &Job,
    writer: usize,
    barrier: &Barrier,
    append: impl Fn(&[&[u8]]) -> Result<(), Failure>,
) -> Result<Span, Failure> {
    let durable = job.job == "durable";
    let pool = pool(writer, job.record_bytes);
    let lap: Vec<&[u8]> =
        pool.iter().map(Vec::as_slice).cycle().take(pool.len().max(job.batch)).collect();
    let mut batches = lap.chunks(job.batch).cycle();
    let warmup = job.warmup / job.batch as u64;
    for batch in batches.by_ref().take(warmup as usize) {
        append(batch)?;
    }
    let calls_max = (job.records_max / job.threads as u64 / job.batch as u64).max(1);
    let block = if durable { 1 } else { (job.block / job.batch as u64).max(1) };
    let mut latencies_ns = Vec::new();
    let mut calls = 0;
    barrier.wait();
    let begin = Instant::now();
    let mut end = begin;
    while calls < calls_max && end - begin < job.seconds {
        for batch in batches.by_ref().take(block as usize) {
            append(batch)?;
        }
        let now = Instant::now();
        if durable {
            latencies_ns.push((now - end).as_nanos() as u64);
        }
        end = now;
        calls += block;
    }
    let batch = job.batch as u64;
    Ok(Span { begin, end, warmup: warmup * batch, records: calls * batch, latencies_ns })
}

fn report(spans: &[Span]) -> String {
    let begin = spans.iter().map(|span| span.begin).min().expect("no writers");
    let end = spans.iter().map(|span| span.end).max().expect("no writers");
    let records: u64 = spans.iter().map(|span| span.records).sum();
    let counts: Vec<u64> = spans.iter().map(|span| span.warmup + span.records).collect();
    let mut samples: Vec<u64> = spans.iter().flat_map(|span| span.latencies_ns.clone()).collect();
    samples.sort_unstable();
    let percentiles = if samples.is_empty() {
        String::new()
    } else {
        let at = |percent: f64| {
            let index = (percent / 100.0 * (samples.len() - 1) as f64).round() as usize;
            samples[index] as f64 / 1e3
        };
        format!(
            "\"p50_us\":{},\"p90_us\":{},\"p99_us\":{},\"p99.9_us\":{},\"max_us\":{}",
            at(50.0), at(90.0), at(99.0), at(99.9), at(100.0)
        )
    };
    format!(
        "{{\"begin_ns\":0,\"end_ns\":{},\"records\":{records},\"counts\":{counts:?},\"latency\":{{{percentiles}}}}}",
        (end - begin).as_nanos()
    )
}

/// Read everything back; the checksum is part of the time.
fn read(job: &Job) -> Result<String, Failure> {
    let (mut count, mut checksum) = (0u64, 0u64);
    let begin = Instant::now();
    stores::read(job, &mut |data| {
        count += 1;
        checksum = checksum.wrapping_add(u64::from(crc32fast::hash(data)));
    })?;
    let ns = begin.elapsed().as_nanos();
    Ok(format!(
        "{{\"begin_ns\":0,\"end_ns\":{ns},\"records\":{count},\"count\":{count},\"checksum\":{checksum}}}"
    ))
}

fn open(job: &Job) -> Result<String, Failure> {
    let begin = Instant::now();
    let _store: Box<dyn Store> = stores::open(job, false)?;
    let ns = begin.elapsed().as_nanos();
    Ok(format!("{{\"begin_ns\":0,\"end_ns\":{ns},\"records\":0}}"))
}
