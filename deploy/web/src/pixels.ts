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

  let data = drawn(bitmap, W, H)
  // A canvas loses the colours of transparent pixels.
  if (isTransparent(data)) {
    const opaque = withoutOpacity(bitmap)
    if (opaque) data = drawn(await createImageBitmap(opaque), W, H)
    else notes.push('The image is partly transparent: predict.py may see other colours there.')
  }
  bitmap.close()
  return { width: W, height: H, data, notes } satisfies Pixels
}

function drawn(bitmap: ImageBitmap, width: number, height: number) {
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true })
  if (!context) throw new Told(`There is not enough memory for ${width} × ${height} pixels. Choose a smaller longest side.`)
  context.imageSmoothingQuality = 'high'
  context.drawImage(bitmap, 0, 0, width, height)
  return context.getImageData(0, 0, width, height).data
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

/** The image with the colours that are stored, also where they are transparent; nothing where there is no WebGL. */
function withoutOpacity(bitmap: ImageBitmap) {
  const { width, height } = bitmap
  const gl = new OffscreenCanvas(1, 1).getContext('webgl2')
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return undefined
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture())
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap)
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer())
  const target = gl.getParameter(gl.TEXTURE_BINDING_2D)
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, target, 0)
  const image = new ImageData(width, height)
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(image.data.buffer))
  const isRead = gl.getError() === gl.NO_ERROR
  gl.getExtension('WEBGL_lose_context')?.loseContext()
  for (let at = 3; at < image.data.length; at += 4) image.data[at] = 255
  return isRead ? image : undefined
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
