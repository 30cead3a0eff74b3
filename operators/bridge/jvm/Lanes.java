/**
 * What comes out of delivery: accepted events, and what each lane tells of itself.
 *
 * Input: Row(lines, progress, times, partials, lane, status) (departures.DELIVERED). Status is JSON, empty
 * where there is no news: lane (its number), waiting and in_flight (how many there are), breaker (closed, open, half_open),
 * held_ms (the event time that the watermark must not pass yet, or null), and delivered and dead_letters
 * (how many more).
 * Output: Row(lines, progress, times, partials), where there are lines; watermarks as they come, but held
 * back while a lane holds them.
 *
 * What the lanes tell is counted as accumulators: delivery.waiting, .in_flight, .delivered, .dead_letters,
 * and of each lane that is not closed delivery.open.N or delivery.half_open.N.
 *
 * Guarantee: what the lanes hold, and how far the watermark has been sent, is operator state, and each
 * subtask takes from it what its lanes are, whatever the parallelism; the least of what has been sent is
 * sent again before any event. So after a restart an event is late where it would have been without it.
 * How many lanes there are is kept too: with another number keys would change their lane, and records theirs.
 */
public class Lanes extends AbstractStreamOperator implements OneInputStreamOperator {
  private static final int VERSION = 2;
  private static final String[] COUNTED = {"waiting", "in_flight"};
  private static final String[] ADDED = {"delivered", "dead_letters"};
  private final int maxParallelism;
  private final int lanes;
  private transient org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper json;
  private transient ListState state;
  private transient Map held;
  private transient Map told;
  private transient long came;
  private transient long sent;
  private transient boolean resend;

  public Lanes(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.maxParallelism = ((Number) refs[0]).intValue();
    this.lanes = ((Number) refs[1]).intValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void initializeState(StateInitializationContext context) throws Exception {
    super.initializeState(context);
    json = new org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper();
    held = new HashMap();
    told = new HashMap();
    long least = Long.MAX_VALUE;
    state = context.getOperatorStateStore().getUnionListState(
        new ListStateDescriptor("held", PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
    Iterator saved = ((Iterable) state.get()).iterator();
    while (saved.hasNext()) {
      java.io.DataInputStream in = new java.io.DataInputStream(
          new java.io.ByteArrayInputStream((byte[]) saved.next()));
      int version = in.readInt();
      if (version != 1 && version != VERSION) {
        throw new IllegalStateException("state of lanes has version " + version + ", this code reads " + VERSION);
      }
      int before = version == 1 ? lanes : in.readInt();
      if (before != lanes) {
        throw new IllegalStateException("delivery.lanes = " + lanes + ", and it was " + before
            + " in the savepoint: set it to " + before + ", a job keeps it for ever");
      }
      least = Math.min(least, in.readLong());
      for (int n = in.readInt(); n > 0; n--) {
        int lane = in.readInt();
        long ms = in.readLong();
        if (isMine(lane)) {
          held.put(Integer.valueOf(lane), Long.valueOf(ms));
        }
      }
    }
    sent = least == Long.MAX_VALUE ? Long.MIN_VALUE : least;
    came = sent;
    resend = sent > Long.MIN_VALUE;
  }

  /* The lanes of the delivery beside this subtask: Flink parts their keys in this way. */
  private boolean isMine(int lane) {
    Row key = Row.of(new Object[] {Integer.valueOf(lane)});
    int of = org.apache.flink.runtime.state.KeyGroupRangeAssignment.assignKeyToParallelOperator(
        key, maxParallelism, getRuntimeContext().getTaskInfo().getNumberOfParallelSubtasks());
    return of == getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
  }

  public void snapshotState(StateSnapshotContext context) throws Exception {
    super.snapshotState(context);
    java.io.ByteArrayOutputStream bytes = new java.io.ByteArrayOutputStream();
    java.io.DataOutputStream out = new java.io.DataOutputStream(bytes);
    out.writeInt(VERSION);
    out.writeInt(lanes);
    out.writeLong(sent);
    out.writeInt(held.size());
    Iterator entries = held.entrySet().iterator();
    while (entries.hasNext()) {
      Map.Entry entry = (Map.Entry) entries.next();
      out.writeInt(((Integer) entry.getKey()).intValue());
      out.writeLong(((Long) entry.getValue()).longValue());
    }
    state.update(java.util.Collections.singletonList(bytes.toByteArray()));
  }

  public void processElement(StreamRecord record) throws Exception {
    if (resend) {
      resend = false;
      super.processWatermark(new Watermark(sent));
    }
    Row row = (Row) record.getValue();
    byte[] status = (byte[]) row.getField(5);
    if (((byte[]) row.getField(0)).length > 0) {
      output.collect(new StreamRecord(Row.of(new Object[] {
          row.getField(0), row.getField(1), row.getField(2), row.getField(3)})));
    }
    // Behind its events: what held the watermark back was they.
    if (status.length > 0) {
      tell((Integer) row.getField(4), (Map) json.readValue(status, Map.class));
      advance();
    }
  }

  private void tell(Integer key, Map status) {
    Object ms = status.get("held_ms");
    if (ms == null) {
      held.remove(key);
    } else {
      held.put(key, Long.valueOf(((Number) ms).longValue()));
    }
    Object lane = status.get("lane");
    Map before = told.containsKey(lane) ? (Map) told.get(lane) : java.util.Collections.EMPTY_MAP;
    for (int i = 0; i < COUNTED.length; i++) {
      count(COUNTED[i], number(status.get(COUNTED[i])) - number(before.get(COUNTED[i])));
    }
    for (int i = 0; i < ADDED.length; i++) {
      count(ADDED[i], number(status.get(ADDED[i])));
    }
    Object breaker = status.get("breaker");
    Object breakerBefore = before.containsKey("breaker") ? before.get("breaker") : "closed";
    if (!breaker.equals(breakerBefore)) {
      if (!"closed".equals(breakerBefore)) {
        count(breakerBefore + "." + lane, -1);
      }
      if (!"closed".equals(breaker)) {
        count(breaker + "." + lane, 1);
      }
    }
    told.put(lane, status);
  }

  private static long number(Object value) {
    return value == null ? 0L : ((Number) value).longValue();
  }

  private void count(String name, long more) {
    if (more != 0) {
      getRuntimeContext().getLongCounter("delivery." + name).add(more);
    }
  }

  public void processWatermark(Watermark mark) throws Exception {
    came = Math.max(came, mark.getTimestamp());
    if (came == Long.MAX_VALUE) {
      held.clear(); // the end of the input: every lane is empty
    }
    advance();
  }

  private void advance() throws Exception {
    long least = came;
    Iterator each = held.values().iterator();
    while (each.hasNext()) {
      least = Math.min(least, ((Long) each.next()).longValue() - 1);
    }
    if (least > sent) {
      sent = least;
      super.processWatermark(new Watermark(sent));
    }
  }
}
