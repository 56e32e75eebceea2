"""The operations pages: rendered on the server, alive by htmx where there is JavaScript, whole without it.

app.py        the API and the pages as one app
session.py    who looks: an API key in a signed cookie, and what it may do
page.py       what every page is answered with: templates, security headers, errors in plain words
words.py      numbers, times and sizes as people read them
pages/        one module per page: its routes and its place in the navigation
templates/    one file per page; `base.html` is the frame
static/       the style sheet, the script, and what others wrote, under vendor/
"""
