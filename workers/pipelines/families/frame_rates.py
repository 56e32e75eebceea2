"""The frame rates for which the models of a family were trained, as their pages give them to ``export_to_video``."""

from workers.pipelines.families.quirk import Quirk

QUIRKS = tuple(
    Quirk(families=frozenset(families), frame_rate=rate)
    for rate, families in {
        7.0: ("stable_video_diffusion",),
        8.0: (
            "animatediff",
            "cogvideo",
            "consisid",
            "latte",
            "i2vgen_xl",
            "text_to_video_synthesis",
            "easyanimate",
            "pag",
            "pia",
        ),
        15.0: ("allegro", "hunyuan_video"),
        16.0: ("wan", "sana_video", "chronoedit", "anyflow"),
        24.0: (
            "ltx",
            "ltx2",
            "skyreels_v2",
            "kandinsky5",
            "kandinsky6",
            "motif_video",
            "hunyuan_video1_5",
            "helios",
            "lucy",
        ),
        30.0: ("mochi", "cosmos"),
    }.items()
)
