// SPDX-License-Identifier: Apache-2.0

/** Viridis, from 0 to 1 in steps of 0.1: even to the eye, and readable without red or green. */
export const HEAT = [
  '#440154', '#482475', '#414487', '#355f8d', '#2a788e', '#21918c', '#22a884', '#44bf70', '#7ad151', '#bddf26',
  '#fde725',
] // prettier-ignore

const HEAT_TABLE = heatTable()

/** Classes as colours.
 *
 * @param opacity of each class, 0 to 255.
 */
export function paintClasses(label: Uint8Array, colors: number[][], opacity: number[], target: ImageData) {
  const table = new Uint32Array(256)
  colors.forEach(([red, green, blue], k) => (table[k] = packed(red!, green!, blue!, opacity[k] ?? 255)))
  const out = new Uint32Array(target.data.buffer)
  for (let at = 0; at < out.length; at++) out[at] = table[label[at]!]!
}

/** Numbers from 0 to 1 as heat, with the opacity of each pixel's class, as above. */
export function paintHeat(map: Float32Array, label: Uint8Array, opacity: number[], target: ImageData) {
  const table = Uint32Array.from({ length: 256 }, (_, k) => packed(255, 255, 255, opacity[k] ?? 255))
  const out = new Uint32Array(target.data.buffer)
  for (let at = 0; at < out.length; at++) {
    out[at] = HEAT_TABLE[Math.min(Math.max(Math.round(map[at]! * 255), 0), 255)]! & table[label[at]!]!
  }
}

function heatTable() {
  const stops = HEAT.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)))
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1)
    const left = Math.min(Math.floor(place), stops.length - 2)
    const [red, green, blue] = stops[left]!.map((from, c) => from + (stops[left + 1]![c]! - from) * (place - left))
    return packed(red!, green!, blue!, 255)
  })
}

/** As an ImageData holds it, on machines with the lowest byte first, which all with a browser are. */
function packed(red: number, green: number, blue: number, opacity: number) {
  return ((opacity << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0
}
