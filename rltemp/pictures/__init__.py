"""Picture files: which ones a folder holds, how one becomes a tensor, and what training changes in it at random.

Inside: `settings` is what a task says of its pictures, `folders` lists the files of a folder, `decoding` reads one,
    `views` makes a network's picture of it, `augmentation` changes a batch of them.
To extend: add a part to `PARTS` in `settings`, and what it does in `views`.
Imports: `models` and below.
Imported by: `data` and what is above it.
"""
