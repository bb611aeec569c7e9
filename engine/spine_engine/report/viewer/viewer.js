// The 3-D view of a study: its points by series, the levels' boxes, a few slices, in patient LPS millimetres
// (+x the patient's left, +y posterior, +z head). Built into viewer.js.gz, see package.json.
import {
  BufferAttribute,
  BufferGeometry,
  CanvasTexture,
  Color,
  DoubleSide,
  Group,
  LineBasicMaterial,
  LineSegments,
  Mesh,
  MeshBasicMaterial,
  PerspectiveCamera,
  Plane,
  Points,
  PointsMaterial,
  Scene,
  Spherical,
  SRGBColorSpace,
  Texture,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { LineMaterial } from "three/addons/lines/LineMaterial.js";
import { LineSegments2 } from "three/addons/lines/LineSegments2.js";
import { LineSegmentsGeometry } from "three/addons/lines/LineSegmentsGeometry.js";
import { CSS2DObject, CSS2DRenderer } from "three/addons/renderers/CSS2DRenderer.js";

const GROUND = 0x10151c;
const BOX_COLOUR = 0xffe08a;
const FILLED = 0.92; // the share of the picture that the study fills
const FIELD_OF_VIEW = 28; // degrees: little perspective, so that parallel slices look parallel
const EDGES = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7], [0, 4], [1, 5], [2, 6], [3, 7]];
const DASHES = { interpolated: [7, 4], prior: [2, 4] }; // mm; detector: solid

// Where the camera stands, seen from the middle; "up" on the screen is the head, for the last two the front.
const VIEWS = {
  start: [0.68, -0.68, 0.3],
  front: [0, -1, 0],
  side: [1, 0, 0],
  top: [0, 0.001, 1],
  feet: [0, -0.001, -1],
};
const LETTERS = [["L", 1, 0, 0], ["R", -1, 0, 0], ["P", 0, 1, 0], ["A", 0, -1, 0], ["H", 0, 0, 1], ["F", 0, 0, -1]];

/** Show a scene in the element of a page that templates/viewer.html.j2 has made for it. */
export async function open(root, scene) {
  const stage = root.querySelector("[data-stage]");
  const view = new View(stage, await cloudOf(scene), scene);
  const parts = { boxes: view.boxes, frames: view.frames, sagittal: view.sagittal, axial: view.axial };
  for (const input of root.querySelectorAll("[data-series]")) {
    shown(input, view.points[Number(input.dataset.series)], view);
  }
  for (const input of root.querySelectorAll("[data-part]")) {
    shown(input, parts[input.dataset.part], view);
  }
  const size = root.querySelector("[data-size]");
  const cut = root.querySelector("[data-cut]");
  const sizes = () => view.setSize(Number(size.value));
  const cuts = () => view.setCut(Number(cut.value) / 100);
  size.addEventListener("input", sizes);
  cut.addEventListener("input", cuts);
  sizes();
  cuts();
  for (const button of root.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => view.look(button.dataset.view));
  }
  await view.ready;
  view.draw();
}

function shown(input, object, view) {
  const apply = () => {
    object.visible = input.checked;
    view.draw();
  };
  input.addEventListener("change", apply);
  apply();
}

async function cloudOf(scene) {
  const packed = Uint8Array.from(atob(scene.cloud), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new DataView(await new Response(stream).arrayBuffer());
  const count = scene.series.reduce((sum, series) => sum + series.points, 0);
  const positions = new Float32Array(3 * count);
  for (let axis = 0; axis < 3; axis++) {
    let place = 0;
    for (let n = 0; n < count; n++) {
      place = (place + bytes.getUint16(2 * (axis * count + n), true)) & 0xffff;
      positions[3 * n + axis] = scene.origin_mm[axis] + scene.quantum_mm * place;
    }
  }
  return { positions, values: new Uint8Array(bytes.buffer, 6 * count, count) };
}

class View {
  constructor(stage, cloud, scene) {
    this.stage = stage;
    this.world = new Scene();
    this.camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 10, 20000);
    this.camera.up.set(0, 0, 1);
    this.cutting = new Plane(new Vector3(-1, 0, 0), 0);
    this.waiting = [];
    this.points = this.cloudPoints(cloud, scene.series);
    this.frames = frames(scene.series);
    this.sagittal = this.slices(scene.slices.filter((slice) => !slice.axial));
    this.axial = this.slices(scene.slices.filter((slice) => slice.axial));
    this.boxes = boxes(scene.boxes);
    this.world.add(...this.points, this.frames, this.sagittal, this.axial, this.boxes);
    this.ready = Promise.all(this.waiting);
    this.measure(cloud.positions);
    this.mount();
    this.look("start");
  }

  /** One object a series, brighter where the pixel is. */
  cloudPoints({ positions, values }, series) {
    const dot = discTexture();
    let first = 0;
    return series.map(({ colour, points }) => {
      const tint = new Color(colour);
      const colours = new Float32Array(3 * points);
      for (let n = 0; n < points; n++) {
        const value = 0.22 + 0.78 * (values[first + n] / 255);
        colours.set([tint.r * value, tint.g * value, tint.b * value], 3 * n);
      }
      const geometry = new BufferGeometry();
      geometry.setAttribute("position", new BufferAttribute(positions.subarray(3 * first, 3 * (first + points)), 3));
      geometry.setAttribute("color", new BufferAttribute(colours, 3));
      first += points;
      const material = new PointsMaterial({
        vertexColors: true, map: dot, alphaTest: 0.5, clippingPlanes: [this.cutting],
      });
      return new Points(geometry, material);
    });
  }

  slices(slices) {
    const group = new Group();
    for (const slice of slices) {
      const [ux, uy, uz, rx, ry, rz, lx, ly, lz] = slice.corners;
      const corners = [ux, uy, uz, rx, ry, rz, lx, ly, lz, rx + lx - ux, ry + ly - uy, rz + lz - uz];
      const geometry = new BufferGeometry();
      geometry.setAttribute("position", new BufferAttribute(new Float32Array(corners), 3));
      geometry.setAttribute("uv", new BufferAttribute(new Float32Array([0, 1, 1, 1, 0, 0, 1, 0]), 2));
      geometry.setIndex([0, 2, 1, 1, 2, 3]);
      const image = new Image();
      const texture = new Texture(image);
      texture.colorSpace = SRGBColorSpace;
      this.waiting.push(
        new Promise((resolve, reject) => {
          image.onload = () => {
            texture.needsUpdate = true;
            resolve();
          };
          image.onerror = () => reject(new Error("a slice cannot be decoded"));
        }),
      );
      image.src = `data:image/jpeg;base64,${slice.jpeg}`;
      group.add(new Mesh(geometry, slab(texture)));
    }
    return group;
  }

  /** Find the middle of what there is. */
  measure(positions) {
    const low = new Vector3(Infinity, Infinity, Infinity);
    const high = low.clone().negate();
    const point = new Vector3();
    const extent = Array.from(positions);
    this.boxes.traverse((object) => extent.push(...(object.userData.corners ?? [])));
    for (let n = 0; n < extent.length; n += 3) {
      point.fromArray(extent, n);
      low.min(point);
      high.max(point);
    }
    if (low.x > high.x) {
      low.set(-1, -1, -1);
      high.set(1, 1, 1);
    }
    this.low = low;
    this.high = high;
    this.middle = low.clone().add(high).multiplyScalar(0.5);
    this.extent = extent;
  }

  mount() {
    this.renderer = new WebGLRenderer({ antialias: true });
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.renderer.setClearColor(GROUND);
    this.renderer.localClippingEnabled = true;
    this.canvas = this.renderer.domElement;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", "3-D view: arrow keys turn it, plus and minus zoom, Home shows all of it");
    this.labels = new CSS2DRenderer();
    this.labels.domElement.className = "viewer-labels";
    this.compass = compass();
    this.stage.replaceChildren(this.canvas, this.labels.domElement, this.compass);
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.zoomToCursor = true;
    this.controls.addEventListener("change", () => this.draw());
    // The wheel scrolls the page until the view is in use.
    this.controls.enableZoom = false;
    this.canvas.addEventListener("focus", () => (this.controls.enableZoom = true));
    this.canvas.addEventListener("blur", () => (this.controls.enableZoom = false));
    this.canvas.addEventListener("pointerdown", () => this.canvas.focus());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.stage);
    this.resize();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    this.renderer.setSize(width, height);
    this.labels.setSize(width, height);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  look(name) {
    const towards = new Vector3(...VIEWS[name]).normalize();
    this.controls.target.copy(this.middle);
    this.camera.position.copy(towards).multiplyScalar(this.distance(towards)).add(this.middle);
    this.controls.update();
    this.draw();
  }

  /** Return how far away all that there is fits into the picture, seen from a direction. */
  distance(towards) {
    const right = new Vector3().crossVectors(this.camera.up, towards).normalize();
    const up = new Vector3().crossVectors(towards, right);
    const slope = FILLED * Math.tan((FIELD_OF_VIEW / 2) * (Math.PI / 180));
    const point = new Vector3();
    let most = 1;
    for (let n = 0; n < this.extent.length; n += 3) {
      point.fromArray(this.extent, n).sub(this.middle);
      const wide = Math.abs(point.dot(right)) / this.camera.aspect;
      most = Math.max(most, Math.max(wide, Math.abs(point.dot(up))) / slope + point.dot(towards));
    }
    return most;
  }

  key(event) {
    const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const zooms = { "+": 0.9, "=": 0.9, "-": 1 / 0.9 };
    const offset = this.camera.position.clone().sub(this.controls.target);
    if (event.key === "Home") {
      this.look("start");
    } else if (event.key in turns && !event.ctrlKey && !event.altKey && !event.metaKey) {
      // Spherical has y up, this world z
      const place = new Spherical().setFromCartesianCoords(offset.y, offset.z, offset.x);
      place.theta += turns[event.key][0] * 0.1;
      place.phi = Math.min(Math.PI - 0.001, Math.max(0.001, place.phi + turns[event.key][1] * 0.1));
      const { x, y, z } = new Vector3().setFromSpherical(place);
      this.camera.position.set(z, x, y).add(this.controls.target);
    } else if (event.key in zooms) {
      this.camera.position.copy(offset.multiplyScalar(zooms[event.key]).add(this.controls.target));
    } else {
      return;
    }
    event.preventDefault();
    this.controls.update();
    this.draw();
  }

  setSize(millimetres) {
    // three sizes points as if the field of view were 90 degrees
    const size = millimetres / Math.tan((FIELD_OF_VIEW / 2) * (Math.PI / 180));
    for (const object of this.points) object.material.size = size;
    this.draw();
  }

  /** Leave out the points in this share of the width, from the patient's left. */
  setCut(share) {
    this.cutting.constant = this.high.x + 1 - share * (this.high.x - this.low.x + 2);
    this.draw();
  }

  /** Draw once, with the next frame of the screen. */
  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.renderer.render(this.world, this.camera);
      this.labels.render(this.world, this.camera);
      this.turnCompass();
    });
  }

  turnCompass() {
    const direction = new Vector3();
    const toCamera = this.camera.quaternion.clone().invert();
    for (const letter of this.compass.children) {
      direction.fromArray(letter.dataset.axis.split(",").map(Number)).applyQuaternion(toCamera);
      letter.style.transform = `translate(${31 * direction.x}px, ${-31 * direction.y}px)`;
      letter.style.zIndex = Math.round(10 * direction.z) + 10;
      letter.style.opacity = direction.z < -0.3 ? 0.55 : 1;
    }
  }
}

/** A picture's material: air is clear, by the blue of its pixels, which are grey. */
function slab(map) {
  const material = new MeshBasicMaterial({
    map, side: DoubleSide, alphaTest: 0.5,
    // a little nearer than it is, so that the points of the same slice do not hide it
    polygonOffset: true, polygonOffsetFactor: -1, polygonOffsetUnits: -20,
  });
  material.onBeforeCompile = (shader) => {
    shader.fragmentShader = shader.fragmentShader.replace(
      "#include <alphatest_fragment>",
      "if (diffuseColor.b < 0.004) discard;",
    );
  };
  return material;
}

function discTexture() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.beginPath();
  context.arc(16, 16, 15.5, 0, 2 * Math.PI);
  context.fill();
  return new CanvasTexture(canvas);
}

function edgesOf(corners) {
  return new Float32Array(EDGES.flat().flatMap((corner) => corners.slice(3 * corner, 3 * corner + 3)));
}

function frames(series) {
  const group = new Group();
  for (const { colour, frames } of series) {
    const material = new LineBasicMaterial({ color: colour, transparent: true, opacity: 0.55 });
    for (const corners of frames) {
      const geometry = new BufferGeometry();
      geometry.setAttribute("position", new BufferAttribute(edgesOf(corners), 3));
      group.add(new LineSegments(geometry, material));
    }
  }
  return group;
}

function boxes(list) {
  const group = new Group();
  for (const { label: words, said, source, corners } of list) {
    const [dash, gap] = DASHES[source] ?? [1, 0];
    const material = new LineMaterial({
      color: BOX_COLOUR, linewidth: 2, dashed: source in DASHES, dashSize: dash, gapSize: gap,
    });
    const lines = new LineSegments2(new LineSegmentsGeometry().setPositions(edgesOf(corners)), material);
    lines.computeLineDistances();
    lines.userData.corners = corners;
    const text = document.createElement("div");
    text.className = "viewer-label";
    text.textContent = words;
    if (said) {
      const more = document.createElement("span");
      more.textContent = `, ${said}`;
      text.append(more);
    }
    const label = new CSS2DObject(text);
    label.center.set(1.06, 0.5);
    // the middle of the edge at the front, on the patient's left: corners 1 and 5 (down, back, across: see BOX_CORNERS)
    label.position.set(...[0, 1, 2].map((axis) => (corners[3 + axis] + corners[15 + axis]) / 2));
    lines.add(label);
    group.add(lines);
  }
  return group;
}

function compass() {
  const element = document.createElement("div");
  element.className = "viewer-compass";
  element.setAttribute("aria-hidden", "true");
  for (const [letter, ...axis] of LETTERS) {
    const part = document.createElement("span");
    part.textContent = letter;
    part.dataset.axis = axis.join(",");
    element.append(part);
  }
  return element;
}
