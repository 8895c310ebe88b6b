"""The prompt language: weights, permutations, wildcards and Midjourney's parameters -> ImageRequests.

    (x:1.3) (x) [x]   more or less of x; \\( \\) \\[ \\] \\{ \\} \\, \\| \\: \\- are the characters themselves
    cat::2 dog::1     parts and how they weigh against each other
    {a,b} {a|b}       one job for each alternative, also inside parameters
    __name__          a line of the file name.txt in a folder of wildcards
    picture.png ...   in front: pictures to start from
    --ar 3:2 ...      parameters, at the end (parameters.PARAMETERS)

Whatever merely looks like it ("a b--c", "std::vector", ":)") is left alone.
"""

from imagewright.prompt.expand import MAX_JOBS
from imagewright.prompt.language import Parsed, parse, plain
from imagewright.prompt.parameters import PARAMETERS

__all__ = ["MAX_JOBS", "PARAMETERS", "Parsed", "parse", "plain"]
