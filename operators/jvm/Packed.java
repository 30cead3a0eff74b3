/**
 * Lines as Python packs them (batches.pack_lines): LZ4 blocks, each behind its packed and its full
 * length (little-endian ints), which is how Flink's own shuffle writes them.
 */
class Packed {
  private static final org.apache.flink.runtime.io.compression.BlockDecompressor LZ4 =
      new org.apache.flink.runtime.io.compression.Lz4BlockDecompressor();

  static byte[] unpack(byte[] packed) {
    java.nio.ByteBuffer sizes =
        java.nio.ByteBuffer.wrap(packed).order(java.nio.ByteOrder.LITTLE_ENDIAN);
    int size = 0;
    for (int at = 0; at < packed.length; at += 8 + sizes.getInt(at)) {
      size += sizes.getInt(at + 4);
    }
    byte[] lines = new byte[size];
    int end = 0;
    for (int at = 0; at < packed.length; at += 8 + sizes.getInt(at)) {
      end += LZ4.decompress(packed, at, 8 + sizes.getInt(at), lines, end);
    }
    return lines;
  }
}
