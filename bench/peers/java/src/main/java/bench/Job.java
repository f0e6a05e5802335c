package bench;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;

/** What one run of the program is asked to do, and the records it appends. */
record Job(
        String peer,
        String job,
        Path directory,
        int recordBytes,
        long recordsMax,
        long durationNs,
        int threads,
        int warmup,
        int block,
        int firstWriter) {

    static Job parse(final String[] arguments) {
        final Map<String, String> given = new HashMap<>();
        for (final String each : arguments) {
            final int at = each.indexOf('=');
            given.put(each.substring(0, at), each.substring(at + 1));
        }
        return new Job(
                given.get("peer"),
                given.get("job"),
                Path.of(given.get("dir")),
                Integer.parseInt(given.get("record_bytes")),
                Long.parseLong(given.get("records_max")),
                (long) (Double.parseDouble(given.get("seconds")) * 1e9),
                Integer.parseInt(given.get("threads")),
                Integer.parseInt(given.get("warmup")),
                Integer.parseInt(given.get("block")),
                Integer.parseInt(given.get("first_writer")));
    }

    boolean durable() {
        return job.equals("durable");
    }

    /** The same job in another directory, small: it only makes the JIT compile the loops. */
    Job rehearsal() {
        return new Job(
                peer, job.equals("read") ? "append" : job, directory.resolve("rehearsal"), recordBytes,
                Math.max(1, Math.min(200_000, (64L << 20) / recordBytes)), 500_000_000L, 1, 0, block, 0);
    }

    /** The payloads that one writer cycles through; the same as in the Python part. */
    byte[][] pool(final int writer) {
        final int count = Integer.highestOneBit(Math.max(4, Math.min(1024, (8 << 20) / recordBytes)));
        final byte[][] pool = new byte[count][recordBytes];
        for (int index = 0; index < count; index++) {
            for (int j = 0; j < recordBytes; j++) {
                pool[index][j] = (byte) ((31 * j + 7) % 256);
            }
            ByteBuffer.wrap(pool[index]).order(ByteOrder.LITTLE_ENDIAN).putInt(writer).putInt(index);
        }
        return pool;
    }
}
