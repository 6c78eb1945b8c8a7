"""The phrases of objectives in English and Chinese, as patterns.

``<NAME>`` in a pattern stands for an entry of ``VOCABULARY``; ``(?P<n>…)`` is the number and ``(?P<u>…)`` its unit. The
order counts: what one pattern has read no other reads.
"""

from __future__ import annotations

from agentic_compression.agent.vocabulary import (
    Phrases,
    as_it_is,
    gigabytes,
    grams,
    hours,
    inverse,
    less,
    milliseconds,
    points,
    share,
)

__all__ = ["BOUNDS", "GOALS"]

BOUNDS: tuple[Phrases, ...] = (
    Phrases(
        "accuracy_drop",
        "<=",
        points,
        (
            (
                r"(?:without|not|never|n't)\s+(?:los\w+|sacrific\w+|giv\w+ up|dropp?\w*)\s+(?:by\s+)?(?:more|"
                r"greater) than<N><POINTS>(?:\s+(?:of|in)?\s*<ACCURACY>)?"
            ),
            (
                r"\b(?:los(?:e|es|ing)|drop(?:s|ping)?|sacrific(?:e|es|ing)|giv(?:e|es|ing) up|degrad(?:e|es|ing)|"
                r"cost(?:s|ing)?)\s+(?:<ACCURACY>\s+)?(?:by\s+)?<FEWER><N><POINTS>(?:\s+(?:of|in)?\s*<ACCURACY>)?"
            ),
            r"<FEWER><N><POINTS>?\s*(?:of|in|worth of)?\s*<ACCURACY>\s*<LOSS>",
            r"<FEWER><N><POINTS>\s*<LOSS>(?:\s+(?:of|in)\s+<ACCURACY>)?",
            r"<ACCURACY>\s*(?:<LOSS>|drops?|falls?|loses)\s*(?:by\s+)?<LIMIT><N><POINTS>?",
            (
                r"(?:<ACCURACY>\s*(?:stays?|remains?|must be|should be|is|kept)?\s*)?within<N><POINTS>\s*(?:of|from)"
                r"\s+(?:the\s+)?(?:baseline|original|uncompressed|full)(?:'s)?(?:\s+model)?(?:\s+<ACCURACY>)?"
            ),
            r"<ACCURACY>\s*(?:stays?|remains?|must be|should be|is|kept)?\s*within<N><POINTS>",
            r"<CN_ACCURACY><CN_LOSS>\s*<LIMIT><N><POINTS>?\s*<WITHIN>",
            r"<CN_ACCURACY><CN_LOSS>\s*(?:[是为要须应必在]\s*)*<N><POINTS>?\s*(?:以内|之内|内|以下)",
            r"(?:损失|下降|降低)<LIMIT><N><POINTS>\s*(?:的?<CN_ACCURACY>)?",
            r"<FEWER><N><POINTS>\s*的?<CN_ACCURACY>(?:损失|下降)",
        ),
    ),
    Phrases(
        "accuracy_drop",
        "<=",
        lambda _v, _u: 0.0,
        (
            r"(?:no|zero|without(?: any)?)\s+(?:<ACCURACY>\s+<LOSS>|<LOSS>\s+(?:of|in)\s+<ACCURACY>)",
            r"without\s+losing\s+(?:any\s+)?<ACCURACY>(?!\s+(?:more|by))",
            r"\blossless(?:ly)?\b",
            "(?:不(?:能|要|得|可)?|无)(?:损失|降低|下降|影响)<CN_ACCURACY>",
            "<CN_ACCURACY>(?:不(?:能|要|得|可)?(?:下降|降低|损失|变)|无损)",
            "无损",
        ),
    ),
    Phrases(
        "accuracy_ratio",
        ">=",
        share,
        (
            (
                r"(?:keep|retain|preserv|maintain)\w*\s+(?:<MORE>)?<N>(?P<u>%|percent)\s*of\s+(?:the\s+|its\s+|our"
                r"\s+)?(?:original\s+|baseline\s+|full\s+|baseline's\s+)?(?:model's\s+)?<ACCURACY>"
            ),
            (
                r"<MORE><N>(?P<u>%|percent)\s*of\s+(?:the\s+|its\s+)?(?:original\s+|baseline\s+|baseline's"
                r"\s+)?(?:model's\s+)?<ACCURACY>"
            ),
            r"(?:保留|保持|维持)(?:<MORE>)?<N>(?P<u>%)?\s*(?:以上)?的?(?:原(?:始|有|来)?的?)?<CN_ACCURACY>",
        ),
    ),
    Phrases(
        "accuracy",
        ">=",
        points,
        (
            r"<ACCURACY>\s*<FLOOR><N><POINTS>?",
            r"<MORE><N><POINTS>\s*<ACCURACY>(?!\s*<LOSS>)",
            r"<CN_ACCURACY>\s*<FLOOR><N><POINTS>?",
            r"<CN_ACCURACY>\s*[是为要须应必在]*<N><POINTS>\s*以上",
        ),
    ),
    Phrases(
        "latency_ratio",
        "<=",
        inverse,
        (
            (
                r"(?:<MORE>)?<N><TIMES>\s*(?:as fast|faster|quicker|speed\s?-?up|(?:the|its) (?:original )?(?:speed|"
                r"throughput))(?:\s+(?:as|than)\s+(?:the\s+)?(?:baseline|original))?"
            ),
            (
                r"(?:speed\s?-?up|accelerat\w+|speed(?:ing|s)? (?:it |the model )?up)\s*(?:by\s+|factor\s+)?(?:"
                r"<FLOOR>)?(?:\s*of)?<N><TIMES>"
            ),
            r"(?:加速(?:比)?|提速|快|速度(?:提升|提高|加快|快)?)\s*(?:到|了|为)?(?:<FLOOR>)?<N>倍\s*(?:以上)?",
            "(?:<MORE>)(?:要)?快<N>倍",
            r"(?:<MORE>)?<N>倍\s*(?:以上)?的?(?:加速|速度|提速)",
        ),
    ),
    Phrases(
        "latency_ratio",
        "<=",
        lambda _v, _u: 0.5,
        (
            r"(?:at least\s+)?\btwice (?:as fast|the speed)",
            r"\bhalf (?:the|its|of the) <LATENCY>",
            "<CN_LATENCY>减半",
        ),
    ),
    Phrases(
        "latency_ratio",
        "<=",
        lambda v, _: 1 / (1 + v / 100),
        (
            r"(?:<MORE>)?<N>(?:%|percent)\s*(?:faster|quicker|speed\s?-?up)",
            "(?:加速|提速|快|速度(?:提升|提高))(?:<FLOOR>)?<N>%",
        ),
    ),
    Phrases(
        "latency_ratio",
        "<=",
        less,
        (
            r"(?:<MORE>)?<N>(?:%|percent)\s*(?:lower|less|smaller|shorter)\s+<LATENCY>",
            r"(?:reduc\w+|lower\w*|cut\w*|decreas\w+)\s+(?:the\s+)?<LATENCY>\s+by\s+(?:<MORE>)?<N>(?:%|percent)",
            "<CN_LATENCY>(?:降低|减少|下降)(?:<FLOOR>)?<N>%",
        ),
    ),
    Phrases(
        "latency_ms",
        "<=",
        milliseconds,
        (
            r"<LATENCY>\s*<LIMIT><N>(?P<u>ms\b|milliseconds?\b|s\b|seconds?\b)(?:\s*(?:per|a|each)\s+request)?",
            r"<FEWER><N>(?P<u>ms\b|milliseconds?\b)(?:\s*(?:of\s+)?<LATENCY>|\s*(?:per|a|each)\s+request)?",
            r"<FEWER><N>(?P<u>s\b|seconds?\b)\s*(?:(?:of\s+)?<LATENCY>|(?:per|a|each)\s+request)",
            r"<CN_LATENCY>\s*<LIMIT><N>(?P<u>ms\b|毫秒|秒)\s*<WITHIN>",
            r"<CN_LATENCY>\s*[是为要须应必在]*<N>(?P<u>ms|毫秒|秒)\s*(?:以内|之内|以下)",
        ),
    ),
    Phrases(
        "memory_ratio",
        "<=",
        less,
        (
            r"(?:<MORE>)?<N>(?:%|percent)\s*(?:lower|less|smaller)\s+<MEMORY>",
            (
                r"(?:reduc\w+|lower\w*|cut\w*|decreas\w+)\s+(?:the\s+)?<MEMORY>(?: use| usage)?\s+by\s+(?:<MORE>)?"
                "<N>(?:%|percent)"
            ),
            "<MEMORY>(?:用量|占用|使用量?)?(?:降低|减少|下降)(?:<FLOOR>)?<N>%",
        ),
    ),
    Phrases(
        "memory_ratio",
        "<=",
        lambda _v, _u: 0.5,
        (
            r"\bhalf (?:the|its|of the|as much) <MEMORY>",
            "<MEMORY>(?:用量|占用)?减半",
        ),
    ),
    Phrases(
        "memory_ratio",
        "<=",
        inverse,
        (r"(?:<MORE>)?<N><TIMES>\s*(?:less|lower|smaller)\s+<MEMORY>",),
    ),
    Phrases(
        "memory_gb",
        "<=",
        gigabytes,
        (
            r"<MEMORY>\s*(?:use|usage|footprint|consumption|用量|占用|使用量?)?\s*<LIMIT><N><BYTES>\s*<WITHIN>",
            (
                r"(?:<FEWER>|fits?(?:ting)? (?:in|into|within)|runs? (?:in|on|within))<N><BYTES>\s*(?:of\s+)?(?:gpu"
                r"\s+)?的?<MEMORY>"
            ),
        ),
    ),
    Phrases(
        "size_ratio",
        "<=",
        inverse,
        (
            r"(?:<MORE>)?<N><TIMES>\s*(?:smaller|compression|reduction in <SIZE>|size reduction)",
            (
                r"(?:compress\w*|shrink\w*|shrunk)\s+(?:it\s+|the model\s+)?(?:by\s+)?(?:ratio\s*)?(?:<FLOOR>)?(?:"
                r"\s*of)?<N><TIMES>"
            ),
            r"(?:压缩|缩小)(?:率|比)?(?:到|了|为)?(?:<FLOOR>)?<N>倍\s*(?:以上)?",
            "(?:<MORE>)小<N>倍",
        ),
    ),
    Phrases(
        "size_ratio",
        "<=",
        less,
        (
            r"(?:<MORE>)?<N>(?:%|percent)\s*smaller",
            (
                r"(?:reduc\w+|cut\w*|shrink\w*|decreas\w+)\s+(?:the\s+|its\s+)?(?:<SIZE>|model)\s+by\s+(?:<MORE>)?"
                "<N>(?:%|percent)"
            ),
            "<CN_SIZE>(?:减少|缩小|降低|压缩)(?:<FLOOR>)?<N>%",
        ),
    ),
    Phrases(
        "size_ratio",
        "<=",
        share,
        (
            (
                r"(?:<LIMIT>|to)?<N>(?P<u>%|percent)\s*of\s+(?:the\s+|its\s+)?(?:original\s+|baseline\s+|baseline's"
                r"\s+)?<SIZE>"
            ),
            (
                r"(?:<FEWER>)?\s*(?P<n>\ba quarter|\ba third|\bhalf)(?: of)?\s+(?:the\s+|its\s+)?(?:original\s+)?"
                "<SIZE>"
            ),
            r"<CN_SIZE>\s*<LIMIT>(?:原(?:来|始|模型)?的?)<N>(?P<u>%)",
        ),
    ),
    Phrases(
        "size_ratio",
        "<=",
        lambda _v, _u: 0.5,
        (
            "<CN_SIZE>减半",
            "(?:原(?:来|始|模型)?的?)?一半的?(?:大小|体积)",
        ),
    ),
    Phrases(
        "model_size_gb",
        "<=",
        gigabytes,
        (
            r"(?:<SIZE>\s*|weights?\s*|file\s*)?<LIMIT><N><BYTES>(?:\s*(?:on disk|of disk|in size|of storage))?",
            r"(?:fits?(?:ting)? (?:in|into|within|on))<N><BYTES>(?:\s*(?:on disk|of disk|of storage))?",
            r"(?:<CN_SIZE>)?\s*<LIMIT><N><BYTES>\s*<WITHIN>",
            r"(?:<CN_SIZE>)?[是为要须应必在]*<N><BYTES>\s*(?:以内|之内|以下)",
        ),
    ),
    Phrases(
        "co2_grams",
        "<=",
        grams,
        (
            (
                r"(?:<CO2>\s*)?(?:<LIMIT>)?<N><GRAMS>\s*<CO2>?\s*(?:per|a|for)\s+(?:1,?000|1k|thousand|a thousand)"
                r"\s+(?:requests|queries|calls)"
            ),
            r"每(?:千|1,?000)次(?:请求|推理|查询)?(?:的?<CN_CO2>)?\s*<LIMIT><N><GRAMS>\s*<CN_CO2>?",
        ),
    ),
    Phrases(
        "co2_ratio",
        "<=",
        less,
        (
            r"(?:<MORE>)?<N>(?:%|percent)\s*(?:lower|less|smaller|fewer)\s+(?:<CO2>|energy)",
            (
                r"(?:reduc\w+|lower\w*|cut\w*|decreas\w+)\s+(?:the\s+)?(?:<CO2>|energy)(?: use)?\s+by\s+(?:<MORE>)?"
                "<N>(?:%|percent)"
            ),
            "(?:<CN_CO2>|能耗|耗电量?)(?:降低|减少|下降)(?:<FLOOR>)?<N>%",
        ),
    ),
    Phrases(
        "carbon_budget_grams",
        "<=",
        grams,
        (
            (
                r"(?:<LIMIT>|a (?:carbon )?budget of)?<N><GRAMS>\s*<CO2>(?:\s*(?:budget|in total|for the (?:study|"
                "search|whole study)))?"
            ),
            r"(?:carbon budget|<CO2>)\s*(?:budget\s*)?(?:<LIMIT>|of|is|:|=)?<N><GRAMS>",
            r"<CN_CO2>(?:的)?(?:排放|预算|总量)*(?:量)?\s*(?:<LIMIT>|[是为:])?<N><GRAMS>\s*(?:co2e?)?\s*<WITHIN>",
            r"(?:排放)?<LIMIT><N><GRAMS>\s*的?<CN_CO2>",
            r"排放量?\s*<LIMIT><N><GRAMS>",
        ),
    ),
    Phrases(
        "episodes",
        "<=",
        as_it_is,
        (
            r"(?:<LIMIT>|in)?<N>(?:episodes?|experiments?|trials?|attempts?|tries)\b",
            "(?:<LIMIT>)?<N>(?:次|个|轮)(?:实验|试验|尝试)",
        ),
    ),
    Phrases(
        "budget_hours",
        "<=",
        hours,
        (
            (
                r"(?:<LIMIT>|in|for|a (?:time )?budget of|time budget\s*(?:of|is|:|=)?)<N><TIME>(?:\s*(?:of work|"
                "in total|budget))?"
            ),
            r"(?:时间|时长|耗时|总时间)?\s*<LIMIT><N><TIME>\s*<WITHIN>",
            r"(?:在)?<N><TIME>\s*(?:以内|之内|内)(?:完成)?",
        ),
    ),
)
GOALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "co2_grams",
        (
            r"\bgreenest<THING>",
            r"minimi[sz]\w+ (?:the |its )?(?:<CO2>|energy(?: use| consumption)?)",
            r"\b(?:lowest|least|minimal|minimum) (?:<CO2>|energy(?: use| consumption)?)",
            "most (?:energy[- ]efficient|efficient in energy|eco-?friendly)<THING>",
            "最(?:环保|绿色|节能|省电|低碳)的?(?:模型)?",
            "(?:碳排放量?|碳排|碳足迹|能耗|耗电量?)(?:最低|最少|最小(?:化)?|(?:尽量|尽可能|越)(?:低|少)(?:越好)?)",
            "最(?:低|少|小化)的?(?:碳排放量?|碳排|碳足迹|能耗)",
        ),
    ),
    (
        "memory_gb",
        (
            r"minimi[sz]\w+ (?:the |its )?<MEMORY>(?: use| usage| footprint)?",
            r"\b(?:least|lowest|minimal|minimum|smallest) <MEMORY>(?: use| usage| footprint)?",
            "as little <MEMORY> as possible",
            "(?:最省|最小化|最少的?|节省)<MEMORY>",
            "<MEMORY>(?:用量|占用)?(?:最少|最小|最低|(?:尽量|尽可能|越)(?:少|小|低)(?:越好)?)",
        ),
    ),
    (
        "accuracy",
        (
            r"maximi[sz]\w+ (?:the |its )?<ACCURACY>",
            r"\bmost accurate<THING>",
            r"\b(?:highest|best|maximum|maximal) <ACCURACY>",
            "as accurate as possible",
            r"minimi[sz]\w+ (?:the )?<ACCURACY> <LOSS>",
            r"\b(?:least|lowest|minimal|minimum) <ACCURACY> <LOSS>",
            "最(?:高|好)的?<CN_ACCURACY>",
            "最(?:准确?|精确)的?(?:模型)?",
            "<CN_ACCURACY>(?:最高|最大化|(?:尽量|尽可能|越)高(?:越好)?)",
            "最大化<CN_ACCURACY>",
        ),
    ),
    (
        "latency_ms",
        (
            r"maximi[sz]\w+ (?:the |its )?(?:inference )?(?:speed\s?-?ups?|speed|throughput|performance speed)",
            r"minimi[sz]\w+ (?:the |its )?(?:inference )?<LATENCY>",
            r"\b(?:fastest|quickest)<THING>",
            r"\b(?:lowest|least|minimal|minimum) <LATENCY>",
            "as fast as possible",
            r"(?:highest|best|most) (?:throughput|speed\s?-?up)",
            r"\bfaster (?:model|version|one)",
            "最大化?的?(?:推理)?(?:加速比?|速度|吞吐量?)",
            "(?:加速|速度|吞吐量?)(?:比)?最大化?",
            "最快(?:的)?(?:模型|速度|版本)?",
            "(?:速度|推理|模型)?(?:要)?(?:尽量|尽可能|越)快(?:越好)?",
            (
                "(?:<CN_LATENCY>最低|最低(?:的)?<CN_LATENCY>|<CN_LATENCY>(?:尽量|尽可能|越)(?:低|小|短)(?:越好)?|"
                "最小化<CN_LATENCY>)"
            ),
        ),
    ),
    (
        "model_size_gb",
        (
            r"\b(?:small(?:est)?|tiniest|lightest|most compact)<THING>",
            r"\bsmaller (?:model|version|one)",
            r"minimi[sz]\w+ (?:the |its )?(?:model |file |disk )?(?:size|footprint|bytes|model)\b",
            "as small as possible",
            r"maximi[sz]\w+ (?:the )?(?:compression(?: ratio)?|size reduction)",
            "最小化?(?:的)?(?:模型|版本)?(?:的)?(?:大小|体积|尺寸|模型)?",
            "(?:模型|体积|大小)(?:要)?(?:尽量|尽可能|越)小(?:越好)?",
            "(?:尽量|尽可能|越)小(?:越好)?",
            "(?:体积|模型)最小(?:化)?",
        ),
    ),
)
