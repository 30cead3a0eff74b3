import java.util.Iterator;

/**
 * Reads a topic for the command line: whole blocks of values, or only how many records there are in
 * some ranges of offsets. No operator: the client's own JVM runs it, since a call a record from Python
 * would take a hundred times as long. The consumer's properties decide which records there are
 * (isolation.level).
 */
public class TopicReader {
  /* Up to so many offsets it is quicker to read on than to begin anew. */
  private static final long READ_ON = 20000;
  private static final int BLOCK_BYTES = 1 << 22;
  private final org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.KafkaConsumer consumer;
  private final long patienceMs;
  private org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition place;
  private long at;
  private long heard;
  private Iterator held;
  private org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord ahead;

  public TopicReader(java.util.Properties properties, long patienceMs) {
    this.consumer =
        new org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.KafkaConsumer(properties);
    this.patienceMs = patienceMs;
  }

  /** Go to an offset of a partition. */
  public void seek(String topic, int partition, long offset) {
    place = new org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition(topic, partition);
    consumer.assign(java.util.Collections.singletonList(place));
    consumer.seek(place, offset);
    at = offset;
    held = java.util.Collections.EMPTY_LIST.iterator();
    ahead = null;
    heard = System.currentTimeMillis();
  }

  /** Where it has come to. */
  public long position() {
    return at;
  }

  /** The next values before an offset, each with a newline behind it; empty when there are no more. */
  public byte[] lines(long end) throws Exception {
    java.io.ByteArrayOutputStream block = new java.io.ByteArrayOutputStream(1 << 16);
    while (block.size() < BLOCK_BYTES) {
      org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord record = next(end);
      if (record == null) {
        break;
      }
      byte[] value = (byte[]) record.value();
      if (value != null) {
        block.write(value, 0, value.length);
        block.write('\n');
      }
    }
    return block.toByteArray();
  }

  /**
   * How many records there are in ranges of offsets, which are in order: big-endian longs, first and
   * last of each; the answer a long for each.
   */
  public byte[] count(String topic, int partition, byte[] ranges) throws Exception {
    java.nio.ByteBuffer in = java.nio.ByteBuffer.wrap(ranges);
    java.nio.ByteBuffer out = java.nio.ByteBuffer.allocate(ranges.length / 2);
    boolean begun = false;
    while (in.hasRemaining()) {
      long first = in.getLong();
      long last = in.getLong();
      if (!begun || first - at > READ_ON) {
        seek(topic, partition, first);
        begun = true;
      }
      long found = 0;
      org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord record = next(last + 1);
      while (record != null) {
        if (record.offset() >= first) {
          found++;
        }
        record = next(last + 1);
      }
      out.putLong(found);
    }
    return out.array();
  }

  public void close() {
    consumer.close(java.time.Duration.ofMillis(0L));
  }

  /* The next record before an offset; null when there is none. */
  private org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord next(long end)
      throws Exception {
    while (true) {
      if (ahead != null) {
        org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord record = ahead;
        at = record.offset();
        if (at >= end) {
          return null;
        }
        ahead = null;
        at++;
        return record;
      }
      if (held.hasNext()) {
        ahead = (org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord) held.next();
        continue;
      }
      // What no record stands at is passed over too: markers, aborted and compacted records.
      at = Math.max(at, consumer.position(place));
      if (at >= end) {
        return null;
      }
      poll();
    }
  }

  private void poll() throws Exception {
    long before = consumer.position(place);
    held = ((Iterable) consumer.poll(java.time.Duration.ofMillis(200L))).iterator();
    long now = System.currentTimeMillis();
    if (held.hasNext() || consumer.position(place) > before) {
      heard = now;
    } else if (now - heard > patienceMs) {
      throw new IllegalStateException("no answer at offset " + before + " of " + place + " within "
          + patienceMs + " ms");
    }
  }
}
