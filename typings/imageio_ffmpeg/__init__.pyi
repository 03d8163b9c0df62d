"""imageio-ffmpeg, as far as `guidestar.motion.drawing` uses it."""

from collections.abc import Generator

def write_frames(
    path: str, size: tuple[int, int], **options: object
) -> Generator[None, object]: ...
