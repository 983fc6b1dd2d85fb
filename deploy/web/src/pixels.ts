// SPDX-License-Identifier: Apache-2.0
import { Told, type Model } from './types'

export interface Pixels {
  width: number
  height: number
  /** Red, green, blue, opacity, as stored in the file. */
  data: Uint8ClampedArray<ArrayBuffer>
  notes: string[]
}

/** Upright, with the numbers that the file has: no colour profile, no multiplication by the opacity. */
const AS_STORED: ImageBitmapOptions = {
  colorSpaceConversion: 'none',
  imageOrientation: 'from-image',
  premultiplyAlpha: 'none',
}

/** Decode an image, and bring it to a size that the network takes.
 *
 * @param limit the longest side that is wanted, in pixels; larger images are made smaller.
 */
export async function readPixels(image: Blob | ImageBitmap, name: string, limit: number, model: Model) {
  const bitmap = image instanceof Blob ? await decoded(image, name) : image
  const { width, height } = bitmap
  const notes: string[] = []
  const share = Math.min(limit / Math.max(width, height), 1)
  const W = model.width ?? Math.max(Math.round(width * share), 1)
  const H = model.height ?? Math.max(Math.round(height * share), 1)
  if (Math.min(W, H) < model.minSize) {
    throw new Told(`${name} is too small: ${W} × ${H} pixels, where this model takes ${model.minSize} or more.`)
  }
  if (W !== width || H !== height) {
    const why = model.width || model.height ? 'the size that this model takes' : 'the longest side you chose'
    notes.push(`The image of ${width} × ${height} pixels was resized to ${W} × ${H}, ${why}.`)
  }

  const canvas = new OffscreenCanvas(W, H)
  const context = canvas.getContext('2d', { willReadFrequently: true })
  if (!context) throw new Told(`There is not enough memory for ${W} × ${H} pixels. Choose a smaller longest side.`)
  context.imageSmoothingQuality = 'high'
  context.drawImage(bitmap, 0, 0, W, H)
  let { data } = context.getImageData(0, 0, W, H)
  bitmap.close()

  // A canvas loses the colours of transparent pixels.
  if (isTransparent(data) && image instanceof Blob) {
    const kept = W === width && H === height ? await withoutCanvas(image, W, H) : undefined
    if (kept) data = kept
    else notes.push('The image is partly transparent: predict.py may see other colours there.')
  }
  return { width: W, height: H, data, notes } satisfies Pixels
}

async function decoded(blob: Blob, name: string) {
  try {
    return await createImageBitmap(blob, AS_STORED)
  } catch {
    throw new Told(`${name} is not an image that this browser can read. Choose a PNG, JPEG, WebP, GIF or BMP file.`)
  }
}

function isTransparent(data: Uint8ClampedArray) {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) return true
  return false
}

/** The colours of transparent pixels, too, where the browser has a decoder that gives them. */
async function withoutCanvas(blob: Blob, width: number, height: number) {
  const Decoder = (globalThis as any).ImageDecoder
  if (!Decoder) return undefined
  try {
    const options = { data: await blob.arrayBuffer(), type: blob.type, ...AS_STORED }
    const { image } = await new Decoder(options).decode()
    if (image.codedWidth !== width || image.codedHeight !== height || image.rotation || image.flip) return undefined
    const data = new Uint8ClampedArray(4 * width * height)
    await image.copyTo(data, { format: 'RGBA', layout: [{ offset: 0, stride: 4 * width }] })
    image.close()
    return data
  } catch {
    return undefined
  }
}

/** What the network takes: float32 [3, H, W], normalised, or uint8 [H, W, 3]. */
export function inputOf({ width, height, data }: Pixels, model: Model): Float32Array | Uint8Array {
  const count = width * height
  const isPlanar = model.inputLayout === 'NCHW'
  const input = model.inputType === 'uint8' ? new Uint8Array(3 * count) : new Float32Array(3 * count)
  for (let channel = 0; channel < 3; channel++) {
    const value = new Float32Array(256).map((_, pixel) =>
      model.inputType === 'uint8' ? pixel : (pixel / model.divisor - model.mean[channel]!) / model.std[channel]!,
    )
    const [start, step] = isPlanar ? [channel * count, 1] : [channel, 3]
    for (let pixel = 0; pixel < count; pixel++) input[start + pixel * step] = value[data[4 * pixel + channel]!]!
  }
  return input
}
