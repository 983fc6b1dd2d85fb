// SPDX-License-Identifier: Apache-2.0
import { Told, type Answer, type Backend, type Opened, type Request, type Response } from './types'

type Waiting = { resolve: (value: any) => void; reject: (error: Error) => void; progress?: Progress }
type Progress = (loaded: number, total: number) => void

/** The worker with the network. One that was stopped, or has run out of memory, is replaced by a new one. */
export class Engine {
  private worker?: Worker
  private opening?: Promise<Opened>
  private running: Promise<unknown> = Promise.resolve()
  private readonly waiting = new Map<number, Waiting>()
  private next = 0

  constructor(
    private readonly base: string,
    private readonly progress: Progress,
  ) {}

  /** Load the model. */
  open(backend: Backend): Promise<Opened> {
    this.stop()
    this.worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' })
    this.worker.onmessage = ({ data }: MessageEvent<Response>) => this.take(data)
    this.worker.onerror = () => {
      this.fail(new Told('The program that runs the network ended. Load the page again.'))
      this.stop()
    }
    this.opening = this.ask<Opened>({ kind: 'open', base: this.base, backend }, [], this.progress)
    return this.opening
  }

  /** What the network says of an image, after the image before it, as a session on WebGPU runs one at a time. */
  run(image: Blob | ImageBitmap, name: string, limit: number, signal: AbortSignal): Promise<Answer> {
    const answer = this.running.then(async () => {
      await this.opening
      signal.throwIfAborted()
      return this.ask<Answer>({ kind: 'run', image, name, limit }, image instanceof ImageBitmap ? [image] : [])
    })
    this.running = answer.catch(() => {})
    return answer
  }

  /** End whatever it does; `open` starts anew. */
  stop() {
    this.worker?.terminate()
    this.worker = undefined
    this.fail(new Stopped())
  }

  get isOpen() {
    return !!this.worker
  }

  private ask<T>(request: WithoutId, transfer: Transferable[], progress?: Progress): Promise<T> {
    const id = this.next++
    return new Promise((resolve, reject) => {
      if (!this.worker) return reject(new Stopped())
      this.waiting.set(id, { resolve, reject, progress })
      this.worker.postMessage({ ...request, id }, transfer)
    })
  }

  private take(response: Response) {
    const waiting = this.waiting.get(response.id)
    if (!waiting) return
    if (response.kind === 'progress') return waiting.progress?.(response.loaded, response.total)
    this.waiting.delete(response.id)
    if (response.kind === 'opened') waiting.resolve(response.opened)
    else if (response.kind === 'answer') waiting.resolve(response.answer)
    else {
      if (response.isLost) this.stop()
      waiting.reject(new Told(response.message))
    }
  }

  private fail(error: Error) {
    for (const { reject } of this.waiting.values()) reject(error)
    this.waiting.clear()
  }
}

type WithoutId = Request extends infer R ? (R extends Request ? Omit<R, 'id'> : never) : never

export class Stopped extends Error {}
