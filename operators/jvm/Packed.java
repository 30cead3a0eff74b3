/**
 * Lines as Python packs them (batches.pack_lines): LZ4 blocks, each behind its packed and its full
 * length (little-endian ints).
 *
 * Flink's own Lz4BlockDecompressor reads the same, but by LZ4's "fast" decompressor, which is plain
 * Java since lz4-java 1.8.1 and takes some fifteen times as long as the native "safe" one.
 */
class Packed {
  private static final net.jpountz.lz4.LZ4SafeDecompressor LZ4 =
      net.jpountz.lz4.LZ4Factory.fastestInstance().safeDecompressor();

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
      end += LZ4.decompress(packed, at + 8, sizes.getInt(at), lines, end);
    }
    if (end != size) {
      throw new IllegalStateException(
          "packed lines hold " + end + " bytes and say that they hold " + size);
    }
    return lines;
  }
}
