// SPDX-License-Identifier: Apache-2.0
import type { Model } from './types'

type Arrays = Record<string, ArrayLike<number> & { subarray?: unknown }>

/** Classes, confidence and attention from the network's outputs, for an image of `count` pixels. */
export function answerOf(outputs: Arrays, model: Model, count: number) {
  const head = outputs[model.outputs[0]!.name]!
  const classes =
    model.outputOp === 'argmax'
      ? { label: Uint8Array.from(head), confidence: undefined }
      : largest(head, count, model.outputOp === 'none')

  const attention = model.outputs.find((output) => output.name === 'attention')
  const maps = attention && (outputs.attention as Float32Array)
  return {
    label: classes.label,
    confidence: (outputs.confidence as Float32Array | undefined)?.slice() ?? classes.confidence,
    attention: (attention?.scales ?? []).map((_, index) => maps!.slice(index * count, (index + 1) * count)),
    scales: attention?.scales ?? [],
  }
}

/** The class of the largest of [K, H, W] numbers at every pixel, the first of equals, and its probability. */
function largest(head: ArrayLike<number>, count: number, isLogits: boolean) {
  const label = new Uint8Array(count)
  const confidence = new Float32Array(count)
  const K = head.length / count
  for (let pixel = 0; pixel < count; pixel++) {
    let best = 0
    for (let k = 1; k < K; k++) if (head[k * count + pixel]! > head[best * count + pixel]!) best = k
    label[pixel] = best
    const top = head[best * count + pixel]!
    confidence[pixel] = top
    if (isLogits) {
      let sum = 0
      for (let k = 0; k < K; k++) sum += Math.exp(head[k * count + pixel]! - top)
      confidence[pixel] = 1 / sum
    }
  }
  return { label, confidence }
}
