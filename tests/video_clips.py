"""Small clips for tests, made as they are needed."""

from fractions import Fraction

import numpy as np

SIZE = (48, 64)
BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}


def moving_disc(count, size=SIZE, shift=0.0, tint=(0.9, 0.55, 0.25)):
    """Frames (n, H, W, 3) of uint8 with a tinted disc over a drifting pattern, and its masks (n, H, W)."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    frames, masks = [], []
    for i in range(count):
        waves = [
            np.sin(columns / 9 + shift + i / 17),
            np.sin(rows / 7 - shift),
            np.cos((rows + columns) / 13 + shift),
        ]
        image = 0.5 + 0.3 * np.stack(waves, 2)
        x, y = width * (0.35 + 0.3 * i / max(count, 1)), height * 0.5
        distance = np.hypot(columns - x, rows - y)
        mask = np.clip(height * 0.28 - distance + 0.5, 0, 1)
        shade = 0.75 + 0.2 * np.sin(rows / 5 + columns / 6)
        image += mask[..., None] * (shade[..., None] * np.float32(tint) - image)
        frames.append(np.rint(255 * image.clip(0, 1)).astype(np.uint8))
        masks.append(np.rint(255 * mask).astype(np.uint8))
    return np.stack(frames), np.stack(masks)


def write_clip(
    path,
    frames,
    *,
    codec="libx264",
    pixel_format="yuv420p",
    rate=25,
    times=None,
    options=None,
    tags=BT709,
    audio=False,
    rotation=0,
    chapters=None,
    metadata=None,
    aspect=None,
    alpha=None,
):
    """Write RGB frames (n, H, W, 3) of uint8 as a video, FFmpeg's own conversion of colours included."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixel_format
        stream.options = options or ({"crf": "12"} if codec == "libx264" else {})
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=44100) if audio else None
        if sound is not None:
            sound.layout = "mono"
        container.metadata.update(metadata or {})
        if chapters:
            container.set_chapters(chapters)
        base = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
        for i, image in enumerate(frames):
            if alpha is not None:
                frame = av.VideoFrame.from_ndarray(np.dstack((image, alpha[i])), "rgba").reformat(
                    format=pixel_format
                )
            else:
                frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = (i if times is None else times[i]), base
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            samples = np.sin(np.arange(int(44100 * len(frames) / rate)) * 0.06).astype(np.float32)[None] * 0.3
            for start in range(0, samples.shape[1] - 1024, 1024):
                chunk = np.ascontiguousarray(samples[:, start : start + 1024])
                part = av.AudioFrame.from_ndarray(chunk, "fltp", "mono")
                part.sample_rate, part.pts = 44100, start
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    return path


def read_samples(path):
    """Read the planes of every frame of a video by FFmpeg alone, a list of lists of arrays."""
    import av

    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            kind = np.uint8 if frame.format.components[0].bits <= 8 else np.uint16
            planes = []
            for plane in frame.planes:
                rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
                planes.append(rows[:, : plane.width].copy())
            found.append(planes)
    return found
