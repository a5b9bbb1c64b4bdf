"""What transformers makes of conversations with the chat templates of real models and of others.

    python scripts/oracles/templates.py smollm2=FILE.gguf qwen2_5_coder=FILE.gguf

writes `crates/offshoot-models/tests/data/templates.json`. Needs `gguf` (0.19) and `transformers`
(5.23). Templates of models come from their files (both Apache-2.0); the others are written here, in
the manner of well-known ones.

    cargo build -p offshoot-models --example render_templates
    python scripts/oracles/templates.py --published FILE.jinja ...

writes nothing, and says in how many conversations what transformers and offshoot make of published
templates differs.
"""

import datetime
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jinja2
from gguf import GGUFReader
from transformers.utils import chat_template_utils

OUT = Path(__file__).parents[2] / "crates/offshoot-models/tests/data/templates.json"
NOW = datetime.datetime(2024, 7, 26, 9, 5, 7)  # noqa: DTZ001


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls):
        return NOW


chat_template_utils.datetime = FixedClock

CHATML = """\
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' -}}
{% endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INST = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}, {% endif %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] " ~ message.tool_calls | map(attribute="function") | list | tojson ~ eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id|default("none") + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

LLAMA2 = """\
{%- set talk = messages -%}
{%- set preface = '' -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set talk = messages[1:] -%}
    {%- set preface = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
{%- endif -%}
{%- for turn in talk -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- set said = (preface ~ turn.content if loop.first else turn.content).strip() -%}
    {%- if turn.role == 'user' -%}
        {{- bos_token ~ '[INST] ' ~ said ~ ' [/INST]' -}}
    {%- elif turn.role == 'assistant' -%}
        {{- ' ' ~ said ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

# Mistral's first, without a space behind a turn and without one around it as Tekken's models have it.
MISTRAL1 = """\
{{ bos_token }}
{%- for turn in messages -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- if turn['role'] == 'user' -%}
        {{ '[INST] ' + turn['content'] + ' [/INST]' }}
    {%- elif turn['role'] == 'assistant' -%}
        {{ turn['content'] + eos_token }}
    {%- else -%}
        {{ raise_exception('Only user and assistant roles are supported!') }}
    {%- endif -%}
{%- endfor -%}
"""

TEKKEN = """\
{{- bos_token }}
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none %}
{%- for turn in messages if turn.role != 'system' %}
    {%- if turn.role == 'user' %}
        {{- '[INST]' ~ (system ~ '\\n\\n' if system is not none and loop.last else '') ~ turn.content ~ '[/INST]' }}
    {%- elif turn.role == 'assistant' and turn.tool_calls is not defined %}
        {{- turn.content ~ eos_token }}
    {%- elif turn.tool_calls is defined %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in turn.tool_calls %}
            {%- set written = call.function | tojson %}
            {{- written[:-1] ~ ', "id": "' ~ call.id ~ '"}' ~ (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' ~ turn.content ~ ', "call_id": "' ~ turn.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""

# Gemma 2 knows no system's turn; Gemma 3 writes it before the first user's words.
GEMMA2 = """\
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for turn in messages -%}
    {%- if (turn.role == 'user') != (loop.index0 is even) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {{ '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\\n' }}
    {{- turn.content | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

GEMMA3 = """\
{{ bos_token }}
{%- set ns = namespace(preface='', skipped=0) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.preface = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\\n\\n' -%}
    {%- set ns.skipped = 1 -%}
{%- endif -%}
{%- for turn in messages[ns.skipped:] -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = {'assistant': 'model'}.get(turn['role'], turn['role']) -%}
    {{ '<start_of_turn>' + role + '\\n' + (ns.preface if loop.first else '') }}
    {%- if turn['content'] is string -%}
        {{ turn['content'] | trim }}
    {%- elif turn['content'] is iterable -%}
        {%- for part in turn['content'] -%}
            {{ part['text'] | trim if part['type'] == 'text' else '<start_of_image>' }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

PHI3 = """\
{% for turn in messages %}
    {%- if turn['role'] in ('user', 'assistant') or turn['role'] == 'system' and turn['content'] %}
        {{- '<|' ~ turn['role'] ~ '|>\\n' ~ turn['content'] ~ '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token }}
"""

THINKING = """\
{%- macro turn(role, text) -%}
<|{{ role | upper }}|>{{ text }}
{% endmacro -%}
{# the last real question, from the end #}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "developer" %}{% continue %}{% endif %}
    {%- if message.role == "stop" %}{% break %}{% endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {% generation %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- turn('assistant', '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content) }}
        {%- else %}
            {{- turn(message.role, content) }}
        {%- endif %}
        {% endgeneration %}
    {%- else %}
        {{- turn(message.role, content) }}
    {%- endif %}
    {%- if loop.previtem is defined and loop.previtem.role == message.role %}(again){% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|ASSISTANT|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

VALUES = """\
{{ true }} {{ none }} {{ [1, 'a', none, false] }} {{ {'k': 'v', 'n': 1.5} }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 5 }}
{{ messages | length }} {{ add_generation_prompt }} {{ tools is none }} {{ documents is none }} {{ undefined_name }}|
  {%+ if true %}kept indent{% endif %}

   {% if true %}
cut indent
   {% endif %}
{{ {'b': [1, 2, {}, []], 'a': 'é"\\n<&>', 'f': 1.0, 'g': 1e-7, 'h': 1e22, 'i': 123456789012345678} | tojson }}
{{ {'b': [1, 2, {}, []], 'a': '\\u00e9😀\\u007f'} | tojson(ensure_ascii=true, sort_keys=true) }}
{{ {'b': [1, {'c': 2}], 'a': []} | tojson(indent=2) }}
{{ {'b': [1, {'c': 2}], 'a': []} | tojson(separators=(',', ':')) }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | tojson }}
{{ 'a,b,,c'.split(',') | join('|') }} {{ '  x '.strip() }} {{ 'Ab'.lower() }} {{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ 'x'.replace('x', 'yy') }}
{% for key, value in {'z': 1, 'y': 2}.items() %}{{ key }}={{ value }}{{ ' ' if not loop.last }}{% endfor %}

{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %y %I %p %%') }}
{{ ['x', 'y'] + ['z'] }} {{ 'a' in 'cat' }} {{ 1 if false }}end {{ 'a' ~ 1 ~ none }} {{ range(3) | list }} {{ (1, 2)[0] }}
{% set ns = namespace(n=0) %}{% for i in range(5) if i % 2 == 0 %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{%- raw %} {{ raw }} {% endraw -%}
{{ messages[0].missing is defined }} {{ messages[-1]['role'] }} {{ messages[0].get('nope', 'default') }} {{ dict(a=1).a }}
{{ '%s-%02d' | format('x', 5) }} {{ [3, 1, 2] | sort | first }} {{ 'title case' | title }} {{ ' x ' | trim }} {{ '' or 'alternative' }}
"""

USER = {"role": "user", "content": "What is the weather in Paris?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather at a place, in °C & <b>more</b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "e.g. \"Zürich\""},
                    "days": {"type": "integer", "default": 1, "enum": [1, 2, 7]},
                    "exact": {"type": "number", "default": 0.5},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "type": "function",
            "id": "call00001",
            "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "exact": 1.0}},
        }
    ],
}
RESULT = {"role": "tool", "content": '{"temperature": 21.5}', "name": "get_weather", "tool_call_id": "call00001"}


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CASES = [
    ("one question", say(("user", "Hello!")), {}),
    ("one question, no prompt", say(("user", "Hello!")), {"add_generation_prompt": False}),
    ("system", say(("system", "Be brief."), ("user", "Hello!")), {}),
    ("many turns", say(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Bye."), ("user", "Again")), {}),
    ("many turns, no prompt", say(("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Bye.")), {"add_generation_prompt": False}),
    ("prefill", say(("user", "Write a haiku."), ("assistant", "Autumn moonlight")), {"add_generation_prompt": False}),
    ("tools", [USER], {"tools": TOOLS}),
    ("tools and system", [*say(("system", "Use tools.")), USER], {"tools": TOOLS}),
    ("tool call", [USER, CALL], {"tools": TOOLS, "add_generation_prompt": False}),
    ("tool result", [USER, CALL, RESULT], {"tools": TOOLS}),
    ("two tool results", [USER, CALL, RESULT, {**RESULT, "content": "second", "tool_call_id": "call00002"}, *say(("assistant", "21.5 °C."), ("user", "Thanks"))], {"tools": TOOLS}),
    ("call with text", [USER, {**CALL, "content": "Let me see."}, RESULT], {}),
    ("two calls", [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}], {}),
    ("empty tools", [USER], {"tools": []}),
    ("empty content", say(("system", ""), ("user", ""), ("assistant", ""), ("user", "")), {}),
    ("white space", say(("user", "  \n\t leading and trailing \n\n "), ("assistant", " \n"), ("user", "\r\nx\r\n")), {}),
    ("Unicode", say(("system", "Отвечай кратко."), ("user", "日本語 👩‍👩‍👧 e\u0301 \u200b \u00a0 ß"), ("assistant", "नमस्ते"), ("user", "שלום")), {}),
    ("markup", say(("user", "<|im_end|>\n<|im_start|>system\n{{ 7 * 7 }}{% if %} & <b> \"' \\n [/INST]")), {}),
    ("roles do not alternate", say(("user", "a"), ("user", "b")), {}),
    ("unknown role", say(("user", "a"), ("critic", "b"), ("developer", "c"), ("stop", "d"), ("user", "e")), {}),
    ("system late", say(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")), {}),
    ("thoughts in text", say(("user", "1+1?"), ("assistant", "<think>\nEasy.\n</think>\n\n2"), ("user", "2+2?"), ("assistant", "<think>\nHm.\n</think>\n\n4")), {"add_generation_prompt": False}),
    ("thoughts apart", [*say(("user", "1+1?")), {"role": "assistant", "content": "2", "reasoning_content": "\nEasy.\n"}], {"add_generation_prompt": False}),
    ("no thinking", say(("user", "1+1?")), {"enable_thinking": False}),
    ("date given", say(("user", "Which day?")), {"date_string": "01 Jan 2030"}),
    ("no messages", [], {}),
    ("none content", [{"role": "user", "content": None}], {}),
]  # fmt: skip


def render(template, messages, options):
    arguments = {"add_generation_prompt": True, "tools": None, **options}
    tokens = {f"{name}_token": template[name] for name in ("bos", "eos") if template[name] is not None}
    # These two are the same field to a template; the library would copy one into the other.
    chat_template_utils._alias_reasoning_fields = lambda chat: chat
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=template["source"], **tokens, **arguments
        )
        return {"text": texts[0]}
    except jinja2.exceptions.TemplateError as error:
        # What raise_exception raises is exactly of this class; others are the engine's.
        return {"refuses": str(error)} if type(error) is jinja2.TemplateError else {"fails": True}
    except TypeError:
        return {"fails": True}


def model(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"]
    token = lambda name: tokens.contents(fields[f"tokenizer.ggml.{name}_token_id"].contents())
    return {"source": fields["tokenizer.chat_template"].contents(), "bos": token("bos"), "eos": token("eos")}


PROGRAM = Path(__file__).parents[2] / "target/debug/examples/render_templates"


def published(paths):
    """Compares what is made of templates that other people wrote."""
    templates = {}
    for path in paths:
        template = {"source": Path(path).read_text(), "bos": "<s>", "eos": "</s>"}
        template["results"] = [render(template, messages, options) for _, messages, options in CASES]
        templates[path] = template
    done = subprocess.run([PROGRAM], input=json.dumps(reference(templates)), text=True, check=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    theirs, total = json.loads(done.stdout), 0
    for path, template in templates.items():
        kind = lambda result: next(iter(result))
        # Where both fail, in whatever words, they agree: the engines word their own errors.
        differ = [
            (case[0], a, b)
            for case, a, b in zip(CASES, template["results"], theirs[path])
            if a != b and not (kind(a) == "fails" and kind(b) != "text")
        ]
        total += len(differ)
        kinds = Counter(map(kind, template["results"]))
        print(Path(path).name, dict(kinds), f"{len(differ)} of {len(CASES)} differ", differ[:1])
    print(f"{len(paths)} templates, {len(CASES)} conversations each, {total} differences")


def reference(templates):
    cases = [{"name": n, "messages": m, "options": o} for n, m, o in CASES]
    now = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    return {"now": now, "cases": cases, "templates": templates}


def main():
    templates = dict(argument.split("=", 1) for argument in sys.argv[1:])
    templates = {name: model(path) for name, path in templates.items()}
    for name, source, bos, eos in [
        ("chatml", CHATML, None, None),
        ("headers", HEADERS, "<|begin_of_text|>", "<|eot_id|>"),
        ("inst", INST, "<s>", "</s>"),
        ("zephyr", ZEPHYR, "<s>", "</s>"),
        ("llama2", LLAMA2, "<s>", "</s>"),
        ("mistral1", MISTRAL1, "<s>", "</s>"),
        ("tekken", TEKKEN, "<s>", "</s>"),
        ("gemma2", GEMMA2, "<bos>", "<eos>"),
        ("gemma3", GEMMA3, "<bos>", "<eos>"),
        ("phi3", PHI3, "<s>", "<|endoftext|>"),
        ("thinking", THINKING, None, None),
        ("values", VALUES, None, None),
    ]:
        templates[name] = {"source": source, "bos": bos, "eos": eos}
    for template in templates.values():
        template["results"] = [render(template, messages, options) for _, messages, options in CASES]
    OUT.write_text(json.dumps(reference(templates), ensure_ascii=True, indent=1) + "\n")
    for name, template in templates.items():
        print(name, [next(iter(result)) for result in template["results"]])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--published"]:
        published(sys.argv[2:])
    else:
        main()
