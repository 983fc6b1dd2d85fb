// SPDX-License-Identifier: Apache-2.0

/** A palette PNG whose pixels are the classes and whose colours are theirs, as predict.py writes it.
 *
 * A canvas would write colours, and some browsers change them a little against fingerprints.
 */
export async function labelPng(label: Uint8Array, width: number, height: number, colors: number[][]): Promise<Blob> {
  const rows = new Uint8Array(height * (width + 1)) // each starts with its filter: none
  for (let y = 0; y < height; y++) {
    rows.set(label.subarray(y * width, (y + 1) * width), y * (width + 1) + 1)
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate'))
  const pixels = new Uint8Array(await new Response(packed).arrayBuffer())

  const header = new Uint8Array(13)
  const view = new DataView(header.buffer)
  view.setUint32(0, width)
  view.setUint32(4, height)
  header.set([8, 3], 8) // bits, palette
  const palette = new Uint8Array(768)
  colors.slice(0, 256).forEach((color, k) => palette.set(color, 3 * k))

  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10)
  const chunks = [chunk('IHDR', header), chunk('PLTE', palette), chunk('IDAT', pixels), chunk('IEND', new Uint8Array())]
  return new Blob([signature, ...chunks], { type: 'image/png' })
}

function chunk(kind: string, content: Uint8Array) {
  const bytes = new Uint8Array(content.length + 12)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, content.length)
  bytes.set(new TextEncoder().encode(kind), 4)
  bytes.set(content, 8)
  view.setUint32(content.length + 8, checksum(bytes.subarray(4, content.length + 8)))
  return bytes
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
  return value
})

/** CRC-32. */
function checksum(bytes: Uint8Array) {
  let value = 0xffffffff
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255]! ^ (value >>> 8)
  return (value ^ 0xffffffff) >>> 0
}
