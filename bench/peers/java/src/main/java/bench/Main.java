package bench;

import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.zip.CRC32;

/**
 * The bench jobs on Java systems: one job a run, one line of JSON out.
 *
 * <p>Jobs: append, durable, read, open. A rehearsal in a directory of its own makes the JIT compile
 * the loops; a warm-up in the store itself counts in the digest. Then the program prints "ready" and
 * waits for a line on standard input, so that several of them start at once.
 */
public final class Main {
    private record Span(long beginNs, long endNs, long warmup, long records, long[] latenciesNs) {}

    private Main() {}

    public static void main(final String[] arguments) throws Exception {
        final Job job = Job.parse(arguments);
        Files.createDirectories(job.rehearsal().directory());
        final String line =
                switch (job.job()) {
                    case "read" -> read(job);
                    case "open" -> open(job);
                    default -> {
                        append(job.rehearsal(), () -> {});
                        yield append(job, Main::announceAndWait);
                    }
                };
        System.out.println(line);
        System.out.flush();
        // Straight out: some of the libraries keep threads that are not daemons.
        Runtime.getRuntime().halt(0);
    }

    private static void announceAndWait() {
        try {
            System.out.println("ready");
            System.out.flush();
            System.in.read();
        } catch (final java.io.IOException failure) {
            throw new java.io.UncheckedIOException(failure);
        }
    }

    private static String append(final Job job, final Runnable atStart) throws Exception {
        final ExecutorService threads = Executors.newFixedThreadPool(job.threads());
        try (Store store = Store.open(job)) {
            final CyclicBarrier barrier = new CyclicBarrier(job.threads(), atStart);
            final List<Callable<Span>> tasks = new ArrayList<>();
            for (int index = 0; index < job.threads(); index++) {
                final int writer = job.firstWriter() + index;
                tasks.add(() -> feed(job, store, writer, barrier));
            }
            final List<Span> spans = new ArrayList<>();
            for (final Future<Span> each : threads.invokeAll(tasks)) {
                spans.add(each.get());
            }
            return report(spans, store);
        } finally {
            threads.shutdown();
        }
    }

    private static Span feed(final Job job, final Store store, final int writer, final CyclicBarrier barrier)
            throws Exception {
        final byte[][] pool = job.pool(writer);
        final long recordsMax = Math.max(1, job.recordsMax() / job.threads());
        final int block = job.durable() ? 1 : job.block();
        final long[] latenciesNs = new long[job.durable() ? (int) recordsMax : 0];
        int next = 0;
        try (Store.Appender appender = store.openAppender()) {
            for (; next < job.warmup(); next++) {
                append(appender, job, pool[next % pool.length]);
            }
            barrier.await();
            final long begin = System.nanoTime();
            long end = begin;
            long records = 0;
            while (records < recordsMax && end - begin < job.durationNs()) {
                for (int index = 0; index < block; index++) {
                    append(appender, job, pool[next++ % pool.length]);
                }
                final long now = System.nanoTime();
                if (job.durable()) {
                    latenciesNs[(int) records] = now - end;
                }
                end = now;
                records += block;
            }
            final int samples = job.durable() ? (int) records : 0;
            return new Span(begin, end, job.warmup(), records, Arrays.copyOf(latenciesNs, samples));
        }
    }

    private static void append(final Store.Appender appender, final Job job, final byte[] data)
            throws Exception {
        if (job.durable()) {
            appender.appendDurable(data);
        } else {
            appender.append(data);
        }
    }

    private static String report(final List<Span> spans, final Store store) {
        final long begin = spans.stream().mapToLong(Span::beginNs).min().orElseThrow();
        final long end = store.arrivedNs(spans.stream().mapToLong(Span::endNs).max().orElseThrow());
        final long[] samples =
                spans.stream().flatMapToLong(span -> Arrays.stream(span.latenciesNs())).sorted().toArray();
        final long records = spans.stream().mapToLong(Span::records).sum();
        final List<Long> counts = spans.stream().map(span -> span.warmup() + span.records()).toList();
        return timing(begin, end, records) + ",\"counts\":" + counts
                + ",\"latency\":{" + percentiles(samples) + "}" + store.tally() + "}";
    }

    private static String timing(final long beginNs, final long endNs, final long records) {
        return "{\"begin_ns\":" + beginNs + ",\"end_ns\":" + endNs + ",\"records\":" + records;
    }

    private static String percentiles(final long[] samples) {
        if (samples.length == 0) {
            return "";
        }
        final String[] names = {"p50_us", "p90_us", "p99_us", "p99.9_us", "max_us"};
        final double[] percents = {50, 90, 99, 99.9, 100};
        final List<String> parts = new ArrayList<>();
        for (int index = 0; index < names.length; index++) {
            final int at = (int) Math.round(percents[index] / 100 * (samples.length - 1));
            parts.add("\"" + names[index] + "\":" + samples[at] / 1e3);
        }
        return String.join(",", parts);
    }

    private static String read(final Job job) throws Exception {
        final Digest digest = new Digest();
        announceAndWait();
        try (Store store = Store.open(job)) {
            final long begin = System.nanoTime();
            store.read(digest::add);
            return timing(begin, System.nanoTime(), digest.count) + digest.members() + "}";
        }
    }

    private static String open(final Job job) throws Exception {
        announceAndWait();
        final long begin = System.nanoTime();
        try (Store store = Store.open(job);
                Store.Appender appender = store.openAppender()) {
            return timing(begin, System.nanoTime(), 0) + "}";
        }
    }

    /** How many records, and the sum of their CRC-32s. */
    static final class Digest {
        private final CRC32 crc = new CRC32();
        long count;
        private long checksum;

        void add(final byte[] data) {
            crc.reset();
            crc.update(data);
            count++;
            checksum += crc.getValue();
        }

        String members() {
            return ",\"count\":" + count + ",\"checksum\":" + Long.toUnsignedString(checksum);
        }
    }
}
