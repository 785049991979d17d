"""What one line of shell leaves: `sort -o`, `sed -i`, `mv`.

- `sort -o FILE FILE` empties the file and writes it again: killed between the two, the file is gone.
- `sed -i` writes a temporary file and renames it, so a kill leaves the old or the new text; but it syncs nothing, and a
  power cut may leave the new name on an empty file.
- `> new; mv new old` does the same by hand.
- With `sync FILE` before the `mv` and `sync DIRECTORY` after it, all of it holds; it is the textbook's replacement.
"""

from crashtest import command

from . import power

NAMES = "printf 'pear\\napple\\npear\\n' > names"

sort_in_place = command("sort -o names names", setup=NAMES, expect={"kill": ["atomic"], **power("atomic", "durable")})
sed_in_place = command("sed -i s/pear/plum/ names", setup=NAMES, expect=power("atomic", "durable"))
move_over = command(
    "sort names | uniq > names.new && mv names.new names", setup=NAMES, expect=power("atomic", "durable")
)
move_over_synced = command(
    "sort names | uniq > names.new && sync names.new && mv names.new names && sync .", setup=NAMES
)
