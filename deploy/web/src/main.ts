// SPDX-License-Identifier: Apache-2.0
import { Engine, Stopped } from './engine'
import { underServiceWorker } from './offline'
import { HEAT, paintClasses, paintHeat } from './paint'
import { labelPng } from './png'
import { Told, type Answer, type Backend, type Opened } from './types'

type View = 'classes' | 'confidence' | 'attention'
type Source = { image: Blob; name: string }

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T
const image = $<HTMLCanvasElement>('image')
const overlay = $<HTMLCanvasElement>('overlay')
const picture = $('picture')
const marker = $('marker')
const readout = $('readout')
const opacity = $<HTMLInputElement>('opacity')
const scale = $<HTMLInputElement>('scale')
const limit = $<HTMLSelectElement>('limit')
const backend = $<HTMLSelectElement>('backend')

const DIM = 40 // opacity, of 255, of the classes beside the one that is pointed at
const EXAMPLE = 'street.png'

const engine = new Engine(new URL('model/', document.baseURI).href, showLoading)
let opened: Opened | undefined
let source: Source | undefined
let answer: Answer | undefined
let shownName = '' // of the image that the answer is about
let activity = new AbortController() // what was asked for last: an image, the camera or a backend
let isCamera = false
let view: View = 'classes'
let pointedAt: number | undefined // a class, in the legend
let place = { x: 0, y: 0 } // of the marker, in pixels of the answer
const hidden = new Set<number>()

// --- One thing at a time. ---

/** Do what was asked for in the place of what was asked for before, and say what the task returns. */
async function perform(text: string, task: (signal: AbortSignal) => Promise<string>) {
  activity.abort()
  const mine = (activity = new AbortController())
  hush()
  say(text)
  busy(true)
  try {
    const result = await task(mine.signal)
    if (!mine.signal.aborted) end(result)
  } catch (error) {
    if (mine.signal.aborted) return
    end('')
    tell(error)
  }
}

/** End what is being done: what it has begun ends with its signal. */
function end(text: string) {
  activity.abort()
  busy(false)
  say(text)
}

// --- The model. ---

let loading: Promise<void> | undefined

async function start() {
  await underServiceWorker()
  $<HTMLSelectElement>('backend').closest('label')!.hidden = !('gpu' in navigator)
  await perform('Loading the model …', ready)
}

async function ready() {
  await load()
  return 'Ready. Drop, paste or choose an image.'
}

/** The model, unless it is there or on its way. */
function load() {
  if (!engine.isOpen) {
    loading = engine.open(backend.value as Backend).then((found) => {
      opened = found
      showFacts()
      $('example').hidden = !opened.model.classNames.includes('road')
    })
  }
  return loading
}

function showLoading(loaded: number, total: number) {
  const share = total ? ` ${Math.round((100 * loaded) / total)} % of ${megabytes(total)}` : ` ${megabytes(loaded)}`
  $('status').textContent = `Loading the model …${share}`
}

// --- Images. ---

function take(taken: Source) {
  source = taken
  return perform(`Looking at ${taken.name} …`, (signal) => look(taken, signal))
}

/** Run the network on an image, and show what it says. */
async function look({ image, name }: Source, signal: AbortSignal) {
  await load()
  signal.throwIfAborted()
  say(`Looking at ${name} …`)
  busy(true)
  const found = await engine.run(image, name, Number(limit.value), signal)
  signal.throwIfAborted()
  show(found, name)
  return `${name}: ${largestClasses(found)}, in ${seconds(found.milliseconds)}.`
}

function takeFile(files: FileList | null | undefined, how: string) {
  const file = files?.[0]
  if (file) void take({ image: file, name: file.name || 'the pasted image' })
  else tell(new Told(`What was ${how} holds no file. Save the image, and choose its file.`))
}

$<HTMLInputElement>('file').addEventListener('change', (event) => {
  const input = event.target as HTMLInputElement
  if (input.files?.length) takeFile(input.files, 'chosen')
  input.value = '' // so that the same file can be chosen again
})

document.addEventListener('paste', (event) => takeFile(event.clipboardData?.files, 'pasted'))

document.addEventListener('dragover', (event) => {
  event.preventDefault()
  document.body.classList.add('dragged')
})
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragged')
})
document.addEventListener('drop', (event) => {
  event.preventDefault()
  document.body.classList.remove('dragged')
  takeFile(event.dataTransfer?.files, 'dropped')
})

$('example').addEventListener('click', () =>
  perform(`Looking at ${EXAMPLE} …`, async (signal) => {
    const response = await fetch(EXAMPLE).catch(() => undefined)
    if (!response?.ok) throw new Told('The drawn street could not be loaded. Choose an image.')
    const image = await response.blob()
    signal.throwIfAborted()
    source = { image, name: EXAMPLE }
    return look(source, signal)
  }),
)

limit.addEventListener('change', () => source && !isCamera && take(source))
backend.addEventListener('change', () => {
  engine.stop()
  if (isCamera) busy(true) // Its next image loads the model.
  else if (source) void take(source)
  else void perform('Loading the model …', ready)
})

$('stop').addEventListener('click', () => {
  engine.stop()
  end('Stopped. The model is loaded again with the next image.')
})

// --- The camera. ---

$('camera').addEventListener('click', () => (isCamera ? end('The camera is off.') : perform('Opening the camera …', film)))
window.addEventListener('pagehide', () => isCamera && end('The camera is off.'))

/** Look at one frame after the other: the next is taken when the answer to the last is there. */
async function film(signal: AbortSignal): Promise<never> {
  showCamera(true)
  busy(true)
  signal.addEventListener('abort', () => showCamera(false))
  const stream = await openCamera()
  const close = () => stream.getTracks().forEach((track) => track.stop())
  if (signal.aborted) close()
  signal.throwIfAborted()
  signal.addEventListener('abort', close)

  const video = document.createElement('video')
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true })
  await video.play()
  while (stream.active) {
    try {
      await load()
      signal.throwIfAborted()
      say('The camera is on. Its images stay on this device.')
      const frame = await createImageBitmap(video)
      const found = await engine.run(frame, 'the camera', Number(limit.value), signal)
      signal.throwIfAborted()
      source = undefined
      show(found, 'camera')
      busy(false)
    } catch (error) {
      if (!(error instanceof Stopped)) throw error // Another backend was chosen.
    }
    await new Promise(requestAnimationFrame)
  }
  throw new Told('The camera is gone. Connect it, and try again.')
}

async function openCamera() {
  if (!navigator.mediaDevices) throw new Told('Browsers give a camera to pages on https and localhost alone.')
  const video = { facingMode: 'environment', width: { ideal: 640 }, height: { ideal: 480 } }
  return navigator.mediaDevices.getUserMedia({ video }).catch((error: DOMException) => {
    throw new Told(CAMERA_ERRORS[error.name] ?? `The camera could not be opened: ${error.message}.`)
  })
}

function showCamera(isOn: boolean) {
  isCamera = isOn
  $('camera').textContent = isOn ? 'Stop the camera' : 'Use the camera'
}

const CAMERA_ERRORS: Record<string, string> = {
  NotAllowedError: 'The camera was not allowed. Allow it in the browser’s settings of this page, or choose an image.',
  NotFoundError: 'No camera was found. Connect one, or choose an image.',
  NotReadableError: 'The camera is in use by another program. Close that, and try again.',
}

// --- What is shown. ---

function show(found: Answer, name: string) {
  const isNew = !answer || answer.width !== found.width || answer.height !== found.height
  answer = found
  shownName = name
  document.body.classList.add('answered')
  $('empty').hidden = true
  $('frame').hidden = readout.hidden = $('download').hidden = false
  if (isNew) {
    for (const canvas of [image, overlay]) Object.assign(canvas, { width: found.width, height: found.height })
    picture.style.setProperty('--ratio', String(found.width / found.height))
    place = { x: found.width >> 1, y: found.height >> 1 }
    marker.hidden = true
  }
  image.getContext('2d')!.putImageData(new ImageData(found.pixels, found.width, found.height), 0, 0)

  scale.max = String(Math.max(found.scales.length - 1, 0))
  offer('confidence', !!found.confidence)
  offer('attention', found.scales.length > 0)
  showLegend()
  showFacts()
  paint()
  if (marker.hidden) readout.textContent = 'Point at the image, or touch it, to read its classes.'
  else read()
}

function offer(name: View, isThere: boolean) {
  const input = document.querySelector<HTMLInputElement>(`input[value=${name}]`)!
  input.disabled = !isThere
  if (!isThere && input.checked) document.querySelector<HTMLInputElement>('input[value=classes]')!.click()
}

function paint() {
  if (!answer || !opened) return
  const painted = new ImageData(answer.width, answer.height)
  const { classNames, classColors } = opened.model
  const alpha = classNames.map((_, k) =>
    pointedAt !== undefined && pointedAt !== k ? (hidden.has(k) ? 0 : DIM) : pointedAt === k || !hidden.has(k) ? 255 : 0,
  )
  if (view === 'classes') paintClasses(answer.label, classColors, alpha, painted)
  else {
    const map = view === 'confidence' ? answer.confidence! : answer.attention[Number(scale.value)]!
    paintHeat(map, answer.label, alpha, painted)
  }
  overlay.getContext('2d')!.putImageData(painted, 0, 0)
  overlay.style.opacity = String(Number(opacity.value) / 100)
}

for (const input of document.querySelectorAll<HTMLInputElement>('input[name=view]')) {
  input.addEventListener('change', () => {
    view = input.value as View
    showView()
    paint()
    if (!marker.hidden) read()
  })
}

function showView() {
  $('heat').hidden = view === 'classes'
  $('scale-row').hidden = view !== 'attention'
  showScale()
}

function showScale() {
  const value = answer?.scales[Number(scale.value)]
  const isLargest = Number(scale.value) + 1 === answer?.scales.length
  const attention = isLargest
    ? 'The largest scale has no larger one to hand over to: its attention decides nothing.'
    : 'How much of its own answer this scale gives; the next larger one gives the rest.'
  $('heat-text').textContent = view === 'attention' ? attention : 'How probable each pixel’s class is to the network.'
  const text = value === undefined ? '' : `× ${value}`
  $('scale-out').textContent = text
  scale.setAttribute('aria-valuetext', value === undefined ? 'none' : `scale ${value}`)
}

scale.addEventListener('input', () => {
  showScale()
  paint()
})
opacity.addEventListener('input', () => {
  $('opacity-out').textContent = `${opacity.value} %`
  opacity.setAttribute('aria-valuetext', `${opacity.value} %`)
  overlay.style.opacity = String(Number(opacity.value) / 100)
})

// --- The legend. ---

function shares({ label }: Answer) {
  const counts = new Array<number>(256).fill(0)
  for (const k of label) counts[k]!++
  return counts.map((count) => count / label.length)
}

function largestClasses(found: Answer) {
  const share = shares(found)
  const best = opened!.model.classNames.map((name, k) => ({ name, share: share[k]! })).sort((a, b) => b.share - a.share)
  const named = best.slice(0, 3).filter((one) => one.share > 0)
  return named.map((one) => `${one.name} ${percent(one.share)}`).join(', ')
}

/** A row for every class, made once, so that the focus stays where it is while the camera runs. */
const rows: HTMLLIElement[] = []

function showLegend() {
  const { classNames } = opened!.model
  const share = shares(answer!)
  if (rows.length !== classNames.length) {
    rows.splice(0)
    classNames.forEach((_, k) => rows.push(legendRow(k)))
  }
  const order = classNames.map((_, k) => k)
  if (!isCamera) order.sort((a, b) => share[b]! - share[a]!)
  const present = order.filter((k) => share[k]! > 0)
  const absent = order.filter((k) => share[k] === 0)
  for (const k of order) {
    rows[k]!.style.setProperty('--share', String(share[k]))
    rows[k]!.querySelector('.percent')!.textContent = percent(share[k]!)
  }
  arrange(present, $('present'))
  arrange(absent, $('absent'))
  $('absent-box').hidden = !absent.length
  $('absent-title').textContent = `${absent.length} not in this image`
}

function arrange(order: number[], list: HTMLElement) {
  const wanted = order.map((k) => rows[k]!)
  if (wanted.length !== list.children.length || wanted.some((row, at) => row !== list.children[at])) {
    list.replaceChildren(...wanted)
  }
}

function legendRow(k: number) {
  const row = document.createElement('li')
  const label = document.createElement('label')
  const box = document.createElement('input')
  box.type = 'checkbox'
  box.checked = !hidden.has(k)
  const parts = ['swatch', 'name', 'percent'].map((name) => {
    const part = document.createElement('span')
    part.className = name
    return part
  })
  row.style.setProperty('--color', `rgb(${opened!.model.classColors[k]!.join(' ')})`)
  parts[1]!.textContent = opened!.model.classNames[k]!
  label.append(box, ...parts)
  row.append(label)

  box.addEventListener('change', () => {
    if (box.checked) hidden.delete(k)
    else hidden.add(k)
    paint()
  })
  const point = (to?: number) => () => {
    pointedAt = to
    paint()
  }
  row.addEventListener('pointerenter', (event) => event.pointerType === 'mouse' && point(k)())
  row.addEventListener('pointerleave', point())
  return row
}

for (const [id, isShown] of [['all', true], ['none', false]] as const) {
  $(id).addEventListener('click', () => {
    rows.forEach((row, k) => {
      row.querySelector('input')!.checked = isShown
      if (isShown) hidden.delete(k)
      else hidden.add(k)
    })
    paint()
  })
}

// --- The class under the pointer. ---

picture.addEventListener('pointermove', (event) => readAt(event))
picture.addEventListener('pointerdown', (event) => readAt(event))

function readAt(event: PointerEvent) {
  if (!answer) return
  const box = picture.getBoundingClientRect()
  const x = Math.floor(((event.clientX - box.left) / box.width) * answer.width)
  const y = Math.floor(((event.clientY - box.top) / box.height) * answer.height)
  readout.ariaLive = 'off' // Whoever points sees it.
  moveTo(x, y)
}

const STEPS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
}

picture.addEventListener('keydown', (event) => {
  const step = STEPS[event.key]
  if (!answer || !step) return
  event.preventDefault()
  const size = Math.max(Math.round(Math.max(answer.width, answer.height) / (event.shiftKey ? 10 : 100)), 1)
  readout.ariaLive = 'polite'
  moveTo(place.x + step[0] * size, place.y + step[1] * size)
})

function moveTo(x: number, y: number) {
  const { width, height } = answer!
  place = { x: Math.min(Math.max(x, 0), width - 1), y: Math.min(Math.max(y, 0), height - 1) }
  marker.hidden = false
  marker.style.left = `${((place.x + 0.5) / width) * 100}%`
  marker.style.top = `${((place.y + 0.5) / height) * 100}%`
  read()
}

function read() {
  const { width, label, confidence, attention, scales } = answer!
  const at = place.y * width + place.x
  const k = label[at]!
  const { classNames, classColors } = opened!.model
  const parts = [classNames[k] ?? `class ${k}`]
  if (confidence) parts.push(`${(100 * confidence[at]!).toFixed(1)} % sure`)
  if (view === 'attention') {
    const shares = scales.map((s, index) => `×\u00a0${s}:\u00a0${attention[index]![at]!.toFixed(2)}`)
    parts.push(`attention ${shares.join(', ')}`)
  }
  parts.push(`at ${place.x}, ${place.y}`)
  readout.textContent = parts.join(' · ')
  const color = `rgb(${(classColors[k] ?? [128, 128, 128]).join(' ')})`
  readout.style.setProperty('--color', color)
  readout.classList.add('read')
  marker.style.setProperty('--color', color)
}

// --- Facts, words, files. ---

function showFacts() {
  const facts: [string, string][] = []
  if (answer) {
    facts.push(['Time', seconds(answer.milliseconds)])
    facts.push(['Size', `${answer.width} × ${answer.height}`])
  }
  if (opened) {
    const { backend, threads, model } = opened
    const units = `${threads} ${threads === 1 ? 'thread' : 'threads'}`
    facts.push(['Backend', backend === 'WebGPU' ? backend : `${backend}, ${units}`])
    facts.push(['Model', `${model.classNames.length} classes, ${model.precision}`])
  }
  if (answer?.memory) facts.push(['Memory', megabytes(answer.memory)])
  $('facts').replaceChildren(
    ...facts.map(([name, value]) => {
      const row = document.createElement('div')
      row.append(
        Object.assign(document.createElement('dt'), { textContent: name }),
        Object.assign(document.createElement('dd'), { textContent: value }),
      )
      return row
    }),
  )
  const notes = [...(opened?.notes ?? []), ...(answer?.notes ?? [])]
  $('notes').replaceChildren(...notes.map((text) => Object.assign(document.createElement('li'), { textContent: text })))
}

$('download').addEventListener('click', async () => {
  const { label, width, height } = answer!
  const png = await labelPng(label, width, height, opened!.model.classColors)
  const stem = shownName.replace(/\.[^.]*$/, '')
  const link = Object.assign(document.createElement('a'), {
    href: URL.createObjectURL(png),
    download: `${stem}_labels.png`,
  })
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
})

function busy(isBusy: boolean) {
  $('busy').hidden = !isBusy
  $('stop').hidden = !isBusy || !opened || isCamera // which has a button of its own
}

function say(text: string) {
  if ($('status').textContent !== text) $('status').textContent = text // so that it is read once
}

function hush() {
  $('error').hidden = true
}

function tell(error: unknown) {
  if (error instanceof Stopped) return
  $('error').textContent = error instanceof Told ? error.message : `Something went wrong: ${error}. Load the page again.`
  $('error').hidden = false
  $('status').textContent = ''
}

const percent = (share: number) => (share > 0 && share < 0.001 ? '< 0.1 %' : `${(100 * share).toFixed(1)} %`)
const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`
const seconds = (ms: number) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`)

$('bar').style.background = `linear-gradient(to right, ${HEAT.join(', ')})`
showView()
void start()
