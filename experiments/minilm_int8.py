"""Semantic search by all-MiniLM-L6-v2 in eight bits, its words in four: 4.8 times smaller, it finds the same (5 minutes on 2 busy CPU cores).

    scripts/fetch_data manpages && scripts/fetch_data minilm           once
    scripts/run experiments.minilm_int8 shrink --chain=int8 --chain=dynamic
    scripts/run experiments.minilm_int8 shrink --chain=int8 --rule=embedding=int4:32        the words in four bits
    scripts/run experiments.minilm_search predict --workdir=runs/minilm_int8/shrink/int8 --input=questions.txt \\
        --config.task.corpus=lines.txt

The published weights of `minilm_search`; nothing is trained, so there is no seed. "dynamic" rounds the layers' inputs too, and
leaves the table of words as it is.

Hardware: 2 CPU cores shared with a dozen other jobs: 5 minutes. Reached on the 116 test descriptions, each to find its own summary
among those of a batch of 5, at which `shrink` cuts the split for its intervals (0.905 to 0.991 for all three):

    model    accuracy  MB in memory  ms a sentence  sentences a second
    before   0.9483    90.3          82             16.7
    int8     0.9483    23.5          116            17.7
    dynamic  0.9483    58.5          106            15.2

In batches of 64 (`minilm_search evaluate` on that folder) 92.2 % are found in int8 too, as in full numbers.
One sentence alone takes longer, as full numbers are made of the codes at each call; in batches of 64 there is no difference.

A byte a number alone is 22.6 MB, and the table of positions stays in full, so that int8 is 3.8 times smaller and not 4. Half of all numbers
are the table of words: with that in four bits, a scale for 32, it is 18.9 MB, 4.8 times smaller, and 92.2 % are found in batches of 64 (a
loss of 0.518). A scale for 32, 64 or a whole word was chosen by the loss of 246 training pairs: 0.668, 0.670, 0.671; 0.668 in full numbers.
"""

from bigjax import launch
from experiments.minilm_search import get_config

if __name__ == "__main__":
    launch.run(get_config)
