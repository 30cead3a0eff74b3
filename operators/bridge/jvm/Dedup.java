/**
 * Which events of a lane have come before.
 *
 * Input: Row(lane, Row(progress, events, digests)) (lanes.LANED), by lane; digests has 16 bytes of each
 * event, in their order, that tell it from all others.
 * Output: the same Row, with the places of the duplicates among the events (big-endian ints) instead of
 * the digests. Of equal ones in a row the first is new, and the others are duplicates of it.
 *
 * State: "seen.v1", an entry for each digest, for ttlMs after the first event that had it, by the
 * machine's clock; a duplicate does not prolong it. A digest is the namespace of its entry, as windows
 * are in Flink: a map by lane would be one value for the heap backend, of which it copies all behind each
 * checkpoint, and goes through all to clean it up.
 *
 * Guarantee: an entry is made with its event, in one checkpoint. So after a restart the events behind
 * the checkpoint are new once more, and those before it are still known: each of them is let through
 * once, whatever comes again.
 */
public class Dedup extends AbstractStreamOperator implements OneInputStreamOperator {
  private static final int DIGEST_BYTES = 16;
  /* Of a heap backend, looked at with each event; it sees all of them before they have doubled. */
  private static final int CLEANED_AT_ONCE = 5;
  /* Of RocksDB: what it compacts, it filters by the time that it asks for after so many entries. */
  private static final long CLOCK_EVERY = 1000L;
  private static final Byte SEEN = Byte.valueOf((byte) 1);
  private final long ttlMs;
  private transient org.apache.flink.api.common.typeutils.TypeSerializer digests;
  private transient org.apache.flink.api.common.state.ValueStateDescriptor seen;

  public Dedup(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.ttlMs = ((Number) refs[0]).longValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    org.apache.flink.api.common.typeutils.TypeSerializer number =
        org.apache.flink.api.common.typeutils.base.LongSerializer.INSTANCE;
    digests = new org.apache.flink.api.java.typeutils.runtime.TupleSerializer(
        org.apache.flink.api.java.tuple.Tuple2.class,
        new org.apache.flink.api.common.typeutils.TypeSerializer[] {number, number});
    seen = new org.apache.flink.api.common.state.ValueStateDescriptor("seen.v1",
        org.apache.flink.api.common.typeutils.base.ByteSerializer.INSTANCE);
    seen.enableTimeToLive(
        org.apache.flink.api.common.state.StateTtlConfig.newBuilder(java.time.Duration.ofMillis(ttlMs))
            .updateTtlOnCreateAndWrite()
            .neverReturnExpired()
            .cleanupFullSnapshot()
            .cleanupIncrementally(CLEANED_AT_ONCE, false)
            .cleanupInRocksdbCompactFilter(CLOCK_EVERY)
            .build());
    // Now, and not with the first event: what is restored is cleaned up too.
    getOrCreateKeyedState(digests, seen);
  }

  public void processElement(StreamRecord record) throws Exception {
    Row row = (Row) record.getValue();
    Row value = (Row) row.getField(1);
    java.nio.ByteBuffer in = java.nio.ByteBuffer.wrap((byte[]) value.getField(2));
    java.nio.ByteBuffer places = java.nio.ByteBuffer.allocate(in.remaining() / DIGEST_BYTES * 4);
    for (int place = 0; in.hasRemaining(); place++) {
      if (!isNew(org.apache.flink.api.java.tuple.Tuple2.of(
          Long.valueOf(in.getLong()), Long.valueOf(in.getLong())))) {
        places.putInt(place);
      }
    }
    Object found = java.util.Arrays.copyOf(places.array(), places.position());
    output.collect(new StreamRecord(Row.of(new Object[] {row.getField(0),
        Row.of(new Object[] {value.getField(0), value.getField(1), found})})));
  }

  private boolean isNew(Object digest) throws Exception {
    org.apache.flink.api.common.state.ValueState state =
        (org.apache.flink.api.common.state.ValueState) getPartitionedState(digest, digests, seen);
    if (state.value() != null) {
      return false;
    }
    state.update(SEEN);
    return true;
  }
}
