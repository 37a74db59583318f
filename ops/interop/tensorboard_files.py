"""What TensorBoard itself finds in the event files of a run, as JSON.

    tensorboard_files.py RUN/tensorboard

tests/page.rs calls it: tags of scalars with their number of points, of histograms with their steps and values, of pictures with their steps,
width and colours. The pictures are those of the folder `pictures`, which TensorBoard shows as a run of its own.
"""

import io
import json
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def opened(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    return events


def main(folder):
    curves, pictures = opened(folder), opened(Path(folder) / "pictures")
    found = {"scalars": {tag: len(curves.Scalars(tag)) for tag in curves.Tags()["scalars"]}, "histograms": {}, "images": {}}
    for tag in curves.Tags()["histograms"]:
        values = curves.Histograms(tag)
        found["histograms"][tag] = {"steps": len(values), "values": values[-1].histogram_value.num}
    for tag in pictures.Tags()["images"]:
        values = pictures.Images(tag)
        picture = Image.open(io.BytesIO(values[-1].encoded_image_string)).convert("RGB")
        if picture.size != (values[-1].width, values[-1].height):
            sys.exit(f"{tag} is {picture.size}, not as it says")
        colours = len(picture.getcolors(picture.width * picture.height))
        found["images"][tag] = {"steps": len(values), "width": picture.width, "colours": colours}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
