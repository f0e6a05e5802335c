package bench;

import java.util.function.Consumer;
import net.openhft.chronicle.bytes.SyncMode;
import net.openhft.chronicle.queue.ChronicleQueue;
import net.openhft.chronicle.queue.ExcerptAppender;
import net.openhft.chronicle.queue.ExcerptTailer;
import net.openhft.chronicle.queue.impl.single.SingleChronicleQueueBuilder;
import net.openhft.chronicle.wire.DocumentContext;

/** Chronicle Queue: several processes may append; an append is in the page cache until sync(). */
final class Chronicle implements Store {
    private final ChronicleQueue queue;

    Chronicle(final Job job) {
        queue = SingleChronicleQueueBuilder.binary(job.directory().resolve("queue"))
                .syncMode(job.durable() ? SyncMode.SYNC : SyncMode.NONE)
                .build();
    }

    @Override
    public Appender openAppender() {
        final ExcerptAppender appender = queue.createAppender();
        return new Appender() {
            @Override
            public void append(final byte[] data) {
                try (DocumentContext document = appender.writingDocument()) {
                    document.wire().bytes().write(data);
                }
            }

            @Override
            public void appendDurable(final byte[] data) {
                append(data);
                appender.sync();
            }

            @Override
            public void close() {
                appender.close();
            }
        };
    }

    @Override
    public void read(final Consumer<byte[]> each) {
        byte[] data = new byte[0];
        try (ExcerptTailer tailer = queue.createTailer()) {
            while (true) {
                try (DocumentContext document = tailer.readingDocument()) {
                    if (!document.isPresent()) {
                        return;
                    }
                    final int recordBytes = (int) document.wire().bytes().readRemaining();
                    if (data.length != recordBytes) {
                        data = new byte[recordBytes];
                    }
                    document.wire().bytes().read(data);
                }
                each.accept(data);
            }
        }
    }

    @Override
    public void close() {
        queue.close();
    }
}
