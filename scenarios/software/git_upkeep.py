"""`git gc` and `git pack-refs` move what is there to other places, and nothing of it may be lost on the way.

A tag is made, and then the repository is tidied up. Both write a new file, rename it into its place, and unlink what
it stands for. A kill leaves every ref and object readable, and at most locks and temporary files. A power cut does
not: by default (`core.fsync=committed,-loose-object`) packs are synced, refs and `packed-refs` are not, and no
directory is ever. So `packed-refs` may be empty although the refs in it are gone from their own files, and the loose
objects may be gone before the pack that replaced them has its name.
"""

from crashtest import command

REPOSITORY = """
git -c init.templateDir= init -q -b main
for text in one two; do echo $text > notes; git add notes; git commit -qm $text; git tag $text; done
"""
UNLOCK = "rm -f .git/*.lock .git/gc.pid .git/refs/tags/*.lock"

git_pack_refs = command(
    commands=["git tag three", "git pack-refs --all"],
    setup=REPOSITORY,
    recover=UNLOCK,
    expect={"posix": ["atomic", "durable"]},
    same=True,
    whole=True,
)
git_gc = command(
    commands=["git tag three", "git gc --quiet --prune=now"],
    setup=REPOSITORY,
    recover=UNLOCK,
    expect={"posix": ["atomic", "durable"]},
    same=True,
    whole=True,
    timeout=30.0,
)
