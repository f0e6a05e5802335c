package bench;

import java.util.function.Consumer;

/** A system that keeps or hands on records. */
interface Store extends AutoCloseable {
    /** One thread's way in. */
    interface Appender extends AutoCloseable {
        void append(byte[] data) throws Exception;

        void appendDurable(byte[] data) throws Exception;

        @Override
        void close();
    }

    Appender openAppender() throws Exception;

    /** When all that was appended had arrived, given when the last append returned. */
    default long arrivedNs(final long lastAppendNs) {
        return lastAppendNs;
    }

    /** JSON members with the digest of what has arrived, of a system that keeps nothing. */
    default String tally() {
        return "";
    }

    /** Every record kept. */
    void read(Consumer<byte[]> each) throws Exception;

    @Override
    void close();

    static Store open(final Job job) throws Exception {
        return switch (job.peer()) {
            case "chronicle" -> new Chronicle(job);
            case "aeron" -> new AeronIpc(job);
            case "aeron-archive" -> new AeronArchiveStore(job);
            default -> throw new IllegalArgumentException("no peer " + job.peer());
        };
    }
}
