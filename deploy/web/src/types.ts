// SPDX-License-Identifier: Apache-2.0

/** What deploy.yaml says of the ONNX file, as far as this page needs it. */
export interface Model {
  file: string
  sha256?: string
  precision: string
  inputName: string
  inputType: 'float32' | 'uint8'
  inputLayout: 'NCHW' | 'NHWC'
  /** Sides that the program fixes, in pixels. */
  width?: number
  height?: number
  minSize: number
  divisor: number
  mean: number[]
  std: number[]
  outputs: Output[]
  outputOp: string
  classNames: string[]
  /** Red, green, blue, 0 to 255. */
  classColors: number[][]
}

export interface Output {
  name: string
  layout: string
  scales?: number[]
}

/** How it is computed. */
export interface Opened {
  model: Model
  backend: 'WebGPU' | 'WebAssembly'
  threads: number
  /** Sentences for people: why it is not faster. */
  notes: string[]
}

/** What the network says of an image of `width` x `height` pixels, row by row. */
export interface Answer {
  width: number
  height: number
  /** Red, green, blue, opacity. */
  pixels: Uint8ClampedArray<ArrayBuffer>
  label: Uint8Array<ArrayBuffer>
  /** Of each pixel's class, 0 to 1. */
  confidence?: Float32Array
  /** One map for every scale of `scales`, 0 to 1. */
  attention: Float32Array[]
  scales: number[]
  /** Milliseconds of the network alone. */
  milliseconds: number
  /** Bytes of WebAssembly's memory. */
  memory: number
  notes: string[]
}

export type Backend = 'auto' | 'webgpu' | 'wasm'

export type Request =
  | { id: number; kind: 'open'; base: string; backend: Backend }
  | { id: number; kind: 'run'; image: Blob | ImageBitmap; name: string; limit: number }

export type Response =
  | { id: number; kind: 'progress'; loaded: number; total: number }
  | { id: number; kind: 'opened'; opened: Opened }
  | { id: number; kind: 'answer'; answer: Answer }
  /** `isLost`: this worker cannot go on. */
  | { id: number; kind: 'error'; message: string; isLost: boolean }

/** An error whose message is a sentence for people: expected, found, what to do. */
export class Told extends Error {}
