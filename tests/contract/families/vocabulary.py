"""Words that the tiny tokenizers know as one token each; they spell all others byte by byte.

Several pipelines wrap a prompt into a fixed text and cut a fixed number of tokens off the front. The words of these
texts are here, so that the cut leaves the prompt.
"""

import re
from typing import Final

_TEXT: Final = """
a an and are as at be by can do does each for from how i if in into is it its not of on or that the then these
this to two user users was what where which while with without you your
describe the image video by detailing the color quantity text shape size texture spatial relationships of the
objects and background key features of the input image explain how the user instruction should alter or modify
the image generate a new image that meets the requirements while maintaining consistency with the original input
where appropriate you are a prompt engineer based on the provided source first target second create an
interesting text prompt that can be used together with camera moves shakes zoom view angle follows content
actions events behaviors temporal physical movement changes transitions environment light style atmosphere
assistant designed to generate superior images with the degree of alignment based on textual prompts or user
helpful system main theme following aspects superior text image prompt start end
red green blue yellow orange purple white black gray cube sphere cone cylinder table room wall sky sea photo
painting drawing small large blurry sharp night day rain sound music voice dog cat house tree man woman
"""

#: Each word once, in the order of the text.
WORDS: Final = tuple(dict.fromkeys(re.findall(r"\w+", _TEXT)))
