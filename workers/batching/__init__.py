"""Step-level continuous batching: unmodified pipelines that share the forwards of their denoiser and VAE.

Each image is one call of an unmodified diffusers pipeline in a greenlet of its own, all on one thread. A hooked module
does not compute when a pipeline calls it: the call parks, and the batcher runs the calls that fit together as ONE
forward, each row at its own timestep, and returns to every pipeline its rows. So images join at any step and leave
when they are finished, and no pipeline needs code of its own.

    image 1   encode ─► unet ─ park ┐             ┌─ rows 0:2 ─► scheduler step ─► unet ─ park …
    image 2   encode ─► unet ─ park ├─► forward ──┼─ rows 2:4 ─► scheduler step ─► unet ─ park …
    image 3   encode ─► unet ─ park ┘             └─ rows 4:5 ─► …

An exception, a cancel or a NaN ends its own image only, and a forward that runs out of memory is split. Float kernels
may round differently for another number of rows; `BatchMode` says what is guaranteed, and each image chooses. How many
rows are efficient, and which numbers of rows give equal bits, is measured on the device the first time that a module
is called with a size, and kept (`workers.batch_profiles`).

`batcher` runs the pipelines and forwards, `calls` says which calls fit together and joins them, and `row_selection`
measures how many rows a forward gets.

(Orca, OSDI 2022, schedules language models at the granularity of iterations; this is the same for diffusion.)
"""
