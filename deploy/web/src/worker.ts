// SPDX-License-Identifier: Apache-2.0
// The network, away from the page, which stays usable meanwhile.
import type { InferenceSession, Tensor } from 'onnxruntime-web'
import gpuLoader from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url'
import gpuProgram from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url'
import wasmLoader from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url'
import wasmProgram from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url'
import { answerOf } from './answer'
import { fetchModel } from './deployment'
import { inputOf, readPixels } from './pixels'
import { Told, type Answer, type Backend, type Model, type Opened, type Request, type Response } from './types'

type Runtime = typeof import('onnxruntime-web')

const scope = self as unknown as { postMessage(message: Response, transfer?: Transferable[]): void }
const MAX_THREADS = 8

let runtime: Runtime
let session: InferenceSession
let model: Model

// ONNX Runtime does not tell how much memory it has taken.
let memory: WebAssembly.Memory | undefined
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(size: WebAssembly.MemoryDescriptor) {
    super(size)
    memory = this
  }
}

self.onmessage = async ({ data }: MessageEvent<Request>) => {
  const { id } = data
  try {
    if (data.kind === 'open') {
      const opened = await open(data.base, data.backend, (loaded, total) =>
        scope.postMessage({ id, kind: 'progress', loaded, total }),
      )
      scope.postMessage({ id, kind: 'opened', opened })
    } else {
      const answer = await run(data.image, data.name, data.limit)
      const maps = [answer.label, answer.pixels, ...(answer.confidence ? [answer.confidence] : []), ...answer.attention]
      scope.postMessage({ id, kind: 'answer', answer }, maps.map((map) => map.buffer as ArrayBuffer))
    }
  } catch (error) {
    scope.postMessage({ id, kind: 'error', ...explained(error, data.kind) })
  }
}

async function open(base: string, backend: Backend, progress: (loaded: number, total: number) => void) {
  const fetched = await fetchModel(base, progress)
  model = fetched.model
  const notes: string[] = []
  if (backend !== 'wasm' && (await hasGpu(backend === 'webgpu'))) {
    try {
      return await create('WebGPU', fetched.bytes, notes)
    } catch (error) {
      notes.push(`WebGPU could not run this model (${firstLine(error)}); WebAssembly does.`)
    }
  } else if (backend === 'webgpu') {
    notes.push('This browser gives no graphics processor to WebGPU; WebAssembly computes.')
  }
  return create('WebAssembly', fetched.bytes, notes)
}

/** Whether WebGPU has a graphics processor; one that is imitated in software is slower than WebAssembly. */
async function hasGpu(isAsked: boolean) {
  try {
    const adapter = await (navigator as any).gpu?.requestAdapter()
    return !!adapter && (isAsked || !adapter.info?.isFallbackAdapter)
  } catch {
    return false
  }
}

async function create(backend: Opened['backend'], bytes: Uint8Array, notes: string[]): Promise<Opened> {
  const isGpu = backend === 'WebGPU'
  runtime = isGpu ? await import('onnxruntime-web/webgpu') : await import('onnxruntime-web/wasm')
  const threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1
  if (!crossOriginIsolated) {
    notes.push('One thread: neither the server nor a service worker gives the page the headers COOP and COEP.')
  }
  runtime.env.wasm.numThreads = threads
  runtime.env.wasm.wasmPaths = isGpu
    ? { mjs: absolute(gpuLoader), wasm: absolute(gpuProgram) }
    : { mjs: absolute(wasmLoader), wasm: absolute(wasmProgram) }
  runtime.env.logLevel = 'error'
  session = await runtime.InferenceSession.create(bytes, {
    executionProviders: [isGpu ? 'webgpu' : 'wasm'],
    graphOptimizationLevel: 'all',
    logSeverityLevel: 3, // errors: its warnings are about what the converter left
  })
  return { model, backend, threads, notes }
}

const absolute = (url: string) => new URL(url, self.location.href).href

async function run(image: Blob | ImageBitmap, name: string, limit: number): Promise<Answer> {
  const pixels = await readPixels(image, name, limit, model)
  const { width, height } = pixels
  const shape = model.inputLayout === 'NCHW' ? [1, 3, height, width] : [1, height, width, 3]
  const input = new runtime.Tensor(model.inputType, inputOf(pixels, model) as Float32Array, shape)

  const start = performance.now()
  let outputs: Record<string, Tensor>
  try {
    outputs = await session.run({ [model.inputName]: input })
  } catch (error) {
    if (isMemory(error)) throw new OutOfMemory(width, height)
    throw error
  }
  const milliseconds = performance.now() - start

  const arrays = Object.fromEntries(Object.entries(outputs).map(([key, tensor]) => [key, tensor.data as Float32Array]))
  const answer = answerOf(arrays, model, width * height)
  for (const tensor of Object.values(outputs)) tensor.dispose()
  const bytes = memory?.buffer.byteLength ?? 0
  return { width, height, pixels: pixels.data, ...answer, milliseconds, memory: bytes, notes: pixels.notes }
}

class OutOfMemory extends Told {
  constructor(width: number, height: number) {
    super(`There is not enough memory for ${width} × ${height} pixels. Choose a smaller longest side, and try again.`)
  }
}

const isMemory = (error: unknown) =>
  error instanceof RangeError || /bad_alloc|out of memory|out of bounds|alloc|OOM|abort/i.test(String(error))

function explained(error: unknown, kind: Request['kind']) {
  // After a failed allocation WebAssembly is in no known state; without a model there is nothing to run.
  const isLost = kind === 'open' || error instanceof OutOfMemory || !(error instanceof Told)
  if (error instanceof Told) return { message: error.message, isLost }
  if (isMemory(error)) return { message: 'There is not enough memory for this model in this browser.', isLost }
  const what =
    kind === 'open' ? 'The model is damaged, or of a kind that browsers do not run' : 'The network could not be run'
  return { message: `${what}: ${firstLine(error)}`, isLost }
}

const firstLine = (error: unknown) => String(error instanceof Error ? error.message : error).split('\n')[0]!.slice(0, 200)
