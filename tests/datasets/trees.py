"""Small copies of the data sets' folder trees: real layouts and annotation formats, tiny JPEGs."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

BUILDERS = {}


def _tiny_jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 60, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _tiny_jpeg()


def builder(name):
    def add(function):
        BUILDERS[name] = function
        return function

    return add


def put_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(JPEG)


def put_text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def put_class_folders(image_dir, folders, num=10):
    for folder in folders:
        put_images(image_dir / folder, [f"image_{i:04d}.jpg" for i in range(1, num + 1)])
    (image_dir / ".DS_Store").write_text("hidden")


@builder("Caltech101")
def caltech101(root):
    folders = ["accordion", "airplanes", "BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes"]
    put_class_folders(root / "caltech-101/101_ObjectCategories", folders)


@builder("Food101")
def food101(root):
    put_class_folders(root / "food-101/images", ["apple_pie", "waffles", "baklava"])


@builder("DescribableTextures")
def dtd(root):
    put_class_folders(root / "dtd/images", ["zigzagged", "banded"])


@builder("EuroSAT")
def eurosat(root):
    put_class_folders(root / "eurosat/2750", ["SeaLake", "AnnualCrop", "Forest"])


@builder("OxfordPets")
def oxford_pets(root):
    base = root / "oxford_pets"
    lines = {"trainval.txt": [], "test.txt": []}
    for label, breed in enumerate(["Abyssinian", "american_bulldog", "Egyptian_Mau"], start=1):
        for name, numbers in (("trainval.txt", range(1, 7)), ("test.txt", range(100, 103))):
            put_images(base / "images", [f"{breed}_{i}.jpg" for i in numbers])
            lines[name] += [f"{breed}_{i} {label} 1 1" for i in numbers]
    for name, content in lines.items():
        put_text(base / "annotations" / name, content)


@builder("StanfordCars")
def stanford_cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.empty((1, 3), dtype=object)
    names[0] = ["AM General Hummer SUV 2000", "Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    kinds = [("class", object), ("fname", object)]
    for folder, path, num in (
        ("cars_train", "devkit/cars_train_annos.mat", 15),
        ("cars_test", "cars_test_annos_withlabels.mat", 6),
    ):
        # The first training image has the last label, as in the real lists label order is not order of appearance.
        images = [(np.array([[3 - i % 3]]), f"{i + 1:05d}.jpg") for i in range(num)]
        put_images(base / folder, [name for _, name in images])
        savemat(base / path, {"annotations": np.array([images], dtype=kinds).reshape(1, num)})


@builder("OxfordFlowers")
def oxford_flowers(root):
    base = root / "oxford_flowers"
    put_images(base / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 31)])
    savemat(base / "imagelabels.mat", {"labels": np.array([[2] * 10 + [3] * 10 + [1] * 10], dtype=np.uint8)})
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
    (base / "cat_to_name.json").write_text(json.dumps(names))


@builder("FGVCAircraft")
def fgvc_aircraft(root):
    base = root / "fgvc_aircraft"
    variants = ["707-320", "Cessna 208", "A310"]
    put_text(base / "variants.txt", variants)
    number = 0
    for part in ("train", "val", "test"):
        lines = []
        for variant in reversed(variants):
            for _ in range(4):
                lines.append(f"{number:07d} {variant}")
                put_images(base / "images", [f"{number:07d}.jpg"])
                number += 1
        put_text(base / f"images_variant_{part}.txt", lines)


@builder("SUN397")
def sun397(root):
    base = root / "sun397"
    scenes = ["/a/abbey", "/a/apartment_building/outdoor", "/y/youth_hostel"]
    put_text(base / "ClassName.txt", scenes)
    for name, numbers in (("Training_01.txt", range(5)), ("Testing_01.txt", range(5, 8))):
        lines = [f"{scene}/sun_{i:03d}.jpg" for scene in scenes for i in numbers]
        for line in lines:
            put_images((base / "SUN397" / line[1:]).parent, [Path(line).name])
        put_text(base / name, lines)


@builder("UCF101")
def ucf101(root):
    base = root / "ucf101"
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo", "TaiChi": "Tai_Chi"}
    put_text(base / "ucfTrainTestlist/classInd.txt", [f"{i} {name}" for i, name in enumerate(actions, start=1)])
    train, test = [], []
    for label, (action, folder) in enumerate(actions.items(), start=1):
        videos = [f"v_{action}_g{i:02d}_c01" for i in range(1, 9)]
        put_images(base / "UCF-101-midframes" / folder, [f"{video}.jpg" for video in videos])
        train += [f"{action}/{video}.avi {label}" for video in videos[:5]]
        test += [f"{action}/{video}.avi" for video in videos[5:]]
    put_text(base / "ucfTrainTestlist/trainlist01.txt", train)
    put_text(base / "ucfTrainTestlist/testlist01.txt", test)


# Not sorted by folder, and more classes than the variants' trees hold: order and subset both matter.
IMAGENET_CLASSES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02123045": "tabby cat",
    "n01484850": "great white shark",
}


def put_classnames(base):
    put_text(base / "classnames.txt", [f"{wnid} {name}" for wnid, name in IMAGENET_CLASSES.items()])


@builder("ImageNet")
def imagenet(root):
    put_classnames(root / "imagenet")
    for wnid in IMAGENET_CLASSES:
        put_images(root / "imagenet/images/train" / wnid, [f"{wnid}_{i}.JPEG" for i in range(6)])
        put_images(root / "imagenet/images/val" / wnid, [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(3)])


@builder("ImageNetV2")
def imagenetv2(root):
    put_classnames(root / "imagenetv2")
    for i in range(len(IMAGENET_CLASSES)):
        put_images(root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(i), ["a.jpeg", "b.jpeg"])


def _variant(root, folder, image_folder, wnids):
    put_classnames(root / folder)
    for wnid in wnids:
        put_images(root / folder / image_folder / wnid, ["x.jpg", "y.jpg"])
    (root / folder / image_folder / "README.txt").write_text("about")


@builder("ImageNetSketch")
def imagenet_sketch(root):
    _variant(root, "imagenet-sketch", "images", IMAGENET_CLASSES)


@builder("ImageNetA")
def imagenet_a(root):
    _variant(root, "imagenet-adversarial", "imagenet-a", ["n02123045", "n01443537"])


@builder("ImageNetR")
def imagenet_r(root):
    _variant(root, "imagenet-rendition", "imagenet-r", ["n01484850", "n01440764"])
