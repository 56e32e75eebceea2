"""Pure values: what a job is, the states it passes, what may be asked, what decides its pixels, and what it costs."""
