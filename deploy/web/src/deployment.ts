// SPDX-License-Identifier: Apache-2.0
import { parse } from 'yaml'
import { Told, type Model } from './types'

const MAX_BYTES = 1 << 16
const REMEDY = 'Export it with export.py --format onnx, and put deploy.yaml and the .onnx file into the folder model.'

/** Read deploy.yaml and the ONNX file that it names from the folder at `base`. */
export async function fetchModel(base: string, progress: (loaded: number, total: number) => void) {
  const text = await fetched(new URL('deploy.yaml', base))
  const model = describe(new TextDecoder().decode(text))
  const url = new URL(encodeURIComponent(model.file), base)
  if (model.sha256) url.searchParams.set('sha256', model.sha256)
  const bytes = await fetched(url, progress)

  // Browsers have it on https and localhost alone.
  if (model.sha256 && globalThis.crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
    if (hex(digest) !== model.sha256) {
      throw new Told(`The model is damaged: ${model.file} is not the file that deploy.yaml describes. Export it again.`)
    }
  }
  return { model, bytes }
}

async function fetched(url: URL, progress?: (loaded: number, total: number) => void) {
  const name = decodeURIComponent(url.pathname.split('/').at(-1)!)
  let response: globalThis.Response
  try {
    response = await fetch(url)
  } catch {
    throw new Told(`The model cannot be reached: ${name} was asked for, and no server answered. Load the page again.`)
  }
  // Some servers answer with a page for whatever they do not have.
  if (!response.ok || response.headers.get('content-type')?.startsWith('text/html')) {
    throw new Told(`There is no model here: expected model/${name} beside this page. ${REMEDY}`)
  }

  const total = Number(response.headers.get('content-length'))
  const parts: Uint8Array<ArrayBuffer>[] = []
  let loaded = 0
  try {
    for (const reader = response.body!.getReader(); ; ) {
      const { done, value } = await reader.read()
      if (done) break
      parts.push(value)
      loaded += value.length
      progress?.(loaded, total)
    }
  } catch {
    throw new Told(`The connection broke while ${name} was loading. Load the page again.`)
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer())
}

/** The description in a deploy.yaml; an error that says what is wrong with it. */
export function describe(text: string): Model {
  let entry: any
  try {
    if (text.length > MAX_BYTES) throw new Error('it is too long')
    entry = parse(text).Deploy
    return checked(entry)
  } catch (error) {
    if (error instanceof Told) throw error
    throw new Told(`The model is damaged: its deploy.yaml is not what export.py writes (${first(error)}). ${REMEDY}`)
  }
}

function checked(entry: any): Model {
  const files = ((entry.formats ?? []) as any[]).filter((row) => row.format === 'onnx')
  const chosen = files.find((row) => row.precision === 'fp32') ?? files[0]
  if (!chosen) throw new Told(`This model was exported without ONNX, which browsers run. ${REMEDY}`)
  const file = String(chosen.files[0])

  const layout = entry.input_layout as Model['inputLayout']
  const side = (axis: string) => (entry.input_shape[layout.indexOf(axis)] ?? undefined) as number | undefined
  if (side('C') !== 3) throw new Told(`This model takes images of ${side('C')} channels, where a browser's have three.`)
  if ((side('N') ?? 1) !== 1) throw new Told(`This model takes ${side('N')} images at once, and this page has one.`)

  const steps = entry.transforms as any[]
  const strange = steps.filter((step) => step.type !== 'Normalize').map((step) => step.type)
  if (strange.length || steps.length > 1) {
    const found = strange[0] ?? 'Normalize twice'
    throw new Told(`This model prepares images by ${found}, and this page only normalises. Export it without.`)
  }

  return {
    file,
    sha256: entry.sha256?.[file],
    precision: String(chosen.precision),
    inputName: String(entry.input_name),
    inputType: entry.input_dtype,
    inputLayout: layout,
    width: side('W'),
    height: side('H'),
    minSize: Number(entry.min_size ?? 1),
    divisor: Number(entry.pixel_divisor ?? 255),
    mean: steps[0]?.mean ?? [0, 0, 0],
    std: steps[0]?.std ?? [1, 1, 1],
    outputs: entry.outputs,
    outputOp: String(entry.output_op),
    classNames: entry.class_names.map(String),
    classColors: entry.class_colors,
  }
}

const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')

const first = (error: unknown) => String(error instanceof Error ? error.message : error).split('\n')[0]
