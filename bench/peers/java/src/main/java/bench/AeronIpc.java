package bench;

import io.aeron.Aeron;
import io.aeron.FragmentAssembler;
import io.aeron.Publication;
import io.aeron.Subscription;
import io.aeron.driver.MediaDriver;
import io.aeron.driver.ThreadingMode;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import java.util.zip.CRC32;
import org.agrona.concurrent.BackoffIdleStrategy;
import org.agrona.concurrent.IdleStrategy;
import org.agrona.concurrent.UnsafeBuffer;
import org.agrona.concurrent.YieldingIdleStrategy;

/**
 * Aeron over shared memory: publishers in threads, one subscriber in a thread of its own, which
 * checksums each record as it arrives. Nothing is kept.
 */
final class AeronIpc implements Store {
    static final String CHANNEL = "aeron:ipc";
    static final int STREAM = 1001;
    private static final int FRAGMENTS = 64;

    private final MediaDriver driver;
    private final Aeron aeron;
    private final Subscription subscription;
    private final Thread subscriber;
    private final AtomicLong sent = new AtomicLong();
    private final AtomicLong received = new AtomicLong();
    private volatile long checksum;
    private volatile boolean running = true;

    AeronIpc(final Job job) {
        final String directory = sharedMemory(job);
        driver = MediaDriver.launch(new MediaDriver.Context()
                .aeronDirectoryName(directory)
                .dirDeleteOnStart(true)
                .dirDeleteOnShutdown(true)
                .threadingMode(ThreadingMode.SHARED));
        aeron = Aeron.connect(new Aeron.Context().aeronDirectoryName(directory));
        subscription = aeron.addSubscription(CHANNEL, STREAM);
        subscriber = new Thread(this::receive, "subscriber");
        subscriber.setDaemon(true);
        subscriber.start();
    }

    /** Where Aeron keeps its term buffers by default: /dev/shm, named after the bench's directory. */
    static String sharedMemory(final Job job) {
        return "/dev/shm/aeron-" + job.directory().toString().replace('/', '-');
    }

    private void receive() {
        final CRC32 crc = new CRC32();
        final byte[][] data = {new byte[0]};
        final FragmentAssembler assembler = new FragmentAssembler((buffer, offset, length, header) -> {
            if (data[0].length != length) {
                data[0] = new byte[length];
            }
            buffer.getBytes(offset, data[0]);
            crc.reset();
            crc.update(data[0]);
            checksum += crc.getValue();
            received.incrementAndGet();
        });
        final IdleStrategy idle = new BackoffIdleStrategy();
        while (running) {
            idle.idle(subscription.poll(assembler, FRAGMENTS));
        }
    }

    @Override
    public Appender openAppender() {
        final Publication publication = aeron.addPublication(CHANNEL, STREAM);
        while (!publication.isConnected()) {
            Thread.yield();
        }
        return new Appender() {
            private final UnsafeBuffer buffer = new UnsafeBuffer(0, 0);
            private long count;

            @Override
            public void append(final byte[] data) {
                buffer.wrap(data);
                offer(publication, buffer, data.length);
                count++;
            }

            @Override
            public void appendDurable(final byte[] data) {
                throw new UnsupportedOperationException("Aeron IPC is never durable");
            }

            @Override
            public void close() {
                // Not the publication: its last records may still be on their way.
                sent.addAndGet(count);
            }
        };
    }

    /** Offer until there is room; the position after the record. */
    static long offer(final Publication publication, final UnsafeBuffer buffer, final int length) {
        while (true) {
            final long position = publication.offer(buffer, 0, length);
            if (position > 0) {
                return position;
            }
            if (position == Publication.CLOSED || position == Publication.MAX_POSITION_EXCEEDED) {
                throw new IllegalStateException("offer: " + position);
            }
            Thread.yield();
        }
    }

    @Override
    public long arrivedNs(final long lastAppendNs) {
        final IdleStrategy idle = new YieldingIdleStrategy();
        while (received.get() < sent.get()) {
            idle.idle();
        }
        return System.nanoTime();
    }

    @Override
    public String tally() {
        return ",\"count\":" + received.get() + ",\"checksum\":" + Long.toUnsignedString(checksum);
    }

    @Override
    public void read(final Consumer<byte[]> each) {
        throw new UnsupportedOperationException("Aeron IPC keeps nothing");
    }

    @Override
    public void close() {
        running = false;
        try {
            subscriber.join();
        } catch (final InterruptedException failure) {
            Thread.currentThread().interrupt();
        }
        aeron.close();
        driver.close();
    }
}
