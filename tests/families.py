"""Chat templates of model families, written anew after their documented forms and kept to what
matters for turns and tool calls: the content they look for, what they make of arguments, what they
refuse."""

from __future__ import annotations

from dataclasses import dataclass

from foreal_core.text.call_syntax import HERMES, CallSyntax
from foreal_core.text.tool_messages import ToolForm

_CHATML_END = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"

# Qwen2.5 and Hermes: JSON between tags; results go into the user's turn.
QWEN_2_5 = (
    """
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- '# Tools\\n\\n<tools>' }}
  {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
  {{- '\\n</tools>\\n\\nReturn calls as <tool_call>\\n{"name": <name>, "arguments": <arguments>}' }}
  {{- '\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- set plain = message.role == 'assistant' and not message.tool_calls %}
  {%- if message.role == 'user' or (message.role == 'system' and not loop.first) or plain %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>assistant' }}
    {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
    {%- for call in message.tool_calls %}
      {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
      {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
      {{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
      {{- '<|im_start|>user' }}
    {%- endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
      {{- '<|im_end|>\\n' }}
    {%- endif %}
  {%- endif %}
{%- endfor %}
"""
    + _CHATML_END
)

# Qwen3: arguments may be text; thinking of the last turn alone; a question must be there, and no
# system message but the first.
QWEN_3 = (
    """
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- '# Tools\\n\\n<tools>' }}
  {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
  {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
  {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
    {%- set ns.last = loop.index0 %}
  {%- endif %}
{%- endfor %}
{%- if ns.last < 0 %}{{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'system' %}
    {%- if not loop.first %}
      {{- raise_exception('System message must be at the beginning.') }}
    {%- endif %}
  {%- elif message.role == 'user' %}
    {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
  {%- elif message.role == 'assistant' %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.last and (loop.last or message.reasoning_content) %}
      {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content }}
    {%- for call in message.tool_calls or [] %}
      {%- if not loop.first or content %}{{- '\\n' }}{%- endif %}
      {%- set call = call.function or call %}
      {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
      {%- if call.arguments is string %}{{- call.arguments }}
      {%- else %}{{- call.arguments | tojson }}{%- endif %}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
      {{- '<|im_start|>user' }}
    {%- endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
      {{- '<|im_end|>\\n' }}
    {%- endif %}
  {%- endif %}
{%- endfor %}
"""
    + _CHATML_END
)

_DEEPSEEK_CALL = (
    "'<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n'"
    " + call.function.arguments + '\\n```<｜tool▁call▁end｜>'"
)

# DeepSeek-R1-Distill: calls only where the content is none; arguments are put into a text; the last
# system message counts; tools are not shown.
R1_DISTILL = """
{%- set ns = namespace(first=true, tool=false, system='') %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{%- set ns.system = message.content %}{%- endif %}
{%- endfor %}
{{- '<｜begin▁of▁sentence｜>' + ns.system }}
{%- for message in messages %}
  {%- if message.role == 'user' %}{%- set ns.tool = false %}{{- '<｜User｜>' + message.content }}
  {%- endif %}
  {%- if message.role == 'assistant' and message.content is none %}
    {%- set ns.tool = false %}
    {%- for call in message.tool_calls %}
      {%- if loop.first %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' + CALL }}
      {%- else %}{{- '\\n' + CALL }}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{%- endif %}
    {%- endfor %}
  {%- endif %}
  {%- if message.role == 'assistant' and message.content is not none %}
    {%- if ns.tool %}
      {{- '<｜tool▁outputs▁end｜>' + message.content + '<｜end▁of▁sentence｜>' }}
      {%- set ns.tool = false %}
    {%- else %}
      {{- '<｜Assistant｜>' + message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
  {%- endif %}
  {%- if message.role == 'tool' %}
    {%- if not ns.tool %}{{- '<｜tool▁outputs▁begin｜>' }}{%- else %}{{- '\\n' }}{%- endif %}
    {%- set ns.tool = true %}
    {{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
  {%- endif %}
{%- endfor %}
{%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' }}{%- endif %}
{%- if add_generation_prompt and not ns.tool %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}
""".replace("CALL", _DEEPSEEK_CALL)

# DeepSeek-R1-0528 with tools: `'</think>' in content` fails for None.
R1_0528 = """
{%- set ns = namespace(system='', tool=false) %}
{%- for message in messages %}
  {%- if message.role == 'system' %}
    {%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + message.content %}
  {%- endif %}
{%- endfor %}
{{- '<｜begin▁of▁sentence｜>' + ns.system }}
{%- if tools %}
  {{- '\\n\\n## Tools\\n' }}
  {%- for tool in tools %}
    {{- '### ' + tool.function.name + '\\n' + (tool.function.parameters | tojson) + '\\n' }}
  {%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- set content = message.content %}
  {%- if message.role == 'user' %}
    {%- set ns.tool = false %}
    {{- '<｜User｜>' + content + '<｜Assistant｜>' }}
  {%- elif message.role == 'assistant' %}
    {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
    {%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' }}{%- endif %}
    {%- set ns.tool = false %}
    {{- content }}
    {%- if message.tool_calls is defined and message.tool_calls is not none %}
      {{- '<｜tool▁calls▁begin｜>' }}
      {%- for call in message.tool_calls %}
        {%- if not loop.first %}{{- '\\n' }}{%- endif %}{{- CALL }}
      {%- endfor %}
      {{- '<｜tool▁calls▁end｜>' }}
    {%- endif %}
    {{- '<｜end▁of▁sentence｜>' }}
  {%- elif message.role == 'tool' %}
    {%- if ns.tool %}{{- '\\n' }}{%- else %}{{- '<｜tool▁outputs▁begin｜>' }}{%- endif %}
    {%- set ns.tool = true %}
    {{- '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' }}
  {%- endif %}
{%- endfor %}
{%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' }}{%- endif %}
""".replace("CALL", _DEEPSEEK_CALL)

# Llama 3.1 and 3.2: a bare object with "parameters", one call a message, text beside it is dropped,
# tools in the first question.
LLAMA_3 = """
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- system + '<|eot_id|>' }}
{%- if tools is not none and tools %}
  {%- if not messages %}{{- raise_exception('There is no first user message!') }}{%- endif %}
  {{- '<|start_header_id|>user<|end_header_id|>\\n\\nFunctions:\\n\\n' }}
  {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
  {{- (messages[0].content | trim) + '<|eot_id|>' }}
  {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
  {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- (message.content | trim) + '<|eot_id|>' }}
  {%- elif 'tool_calls' in message %}
    {%- if message.tool_calls | length != 1 %}
      {{- raise_exception('This model only supports single tool-calls at once!') }}
    {%- endif %}
    {%- set call = message.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
    {{- '"parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
  {%- else %}
    {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
    {%- if message.content is mapping or message.content is iterable %}
      {{- message.content | tojson }}
    {%- else %}{{- message.content }}{%- endif %}
    {{- '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Mistral: a list of calls after a mark, ids of nine letters, turns that alternate, tools before the
# last question.
MISTRAL = """
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for message in turns %}
  {%- if not (message.role == 'tool' or (message.tool_calls is defined and message.tool_calls)) %}
    {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
      {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
  {%- endif %}
{%- endfor %}
{{- '<s>' }}
{%- for message in turns %}
  {%- if message.role == 'user' %}
    {%- if tools and message == users[-1] %}
      {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
    {%- endif %}
    {{- '[INST] ' + ((system + '\\n\\n') if system and loop.last else '') + message.content }}
    {{- '[/INST]' }}
  {%- elif message.tool_calls is defined and message.tool_calls %}
    {{- '[TOOL_CALLS] [' }}
    {%- for call in message.tool_calls %}
      {%- if call.id is not defined or call.id | length != 9 %}
        {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
      {%- endif %}
      {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
      {%- if not loop.last %}{{- ', ' }}{%- endif %}
    {%- endfor %}
    {{- ']</s>' }}
  {%- elif message.role == 'assistant' %}
    {{- ' ' + (message.content | trim) + '</s>' }}
  {%- elif message.role == 'tool' %}
    {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
      {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
    {%- endif %}
    {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' }}
    {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- else %}
    {{- raise_exception('Only user, assistant and tool roles are supported!') }}
  {%- endif %}
{%- endfor %}
"""

# Gemma 2 and 3: no tools, no calls; turns that alternate; the system message joins the first
# question (Gemma 3).
GEMMA_3 = """
{{- '<bos>' }}
{%- if messages[0].role == 'system' %}
  {%- set prefix = messages[0].content + '\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}{%- set prefix = '' %}{%- set turns = messages %}{%- endif %}
{%- for message in turns %}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {%- endif %}
  {%- set role = 'model' if message.role == 'assistant' else message.role %}
  {{- '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
  {{- (message.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

# GLM: the name on a line of its own, then the arguments, printed as they are given; results come
# from an observation.
GLM_4 = """
{{- '[gMASK]<sop>' }}
{%- if tools %}
  {{- '<|system|>\\n' }}
  {%- for tool in tools %}
    {{- '## ' + tool.function.name + '\\n' + (tool.function | tojson) + '\\n' }}
  {%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'assistant' and message.tool_calls %}
    {%- for call in message.tool_calls %}
      {{- '<|assistant|>' }}{{ call.function.name }}{{- '\\n' }}{{ call.function.arguments }}
    {%- endfor %}
  {%- elif message.role in ('system', 'user', 'assistant', 'observation') %}
    {{- '<|' + message.role + '|>\\n' + message.content }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""

# Phi-4: a list between marks, its parts printed as they are given.
PHI_4 = """
{%- for message in messages %}
  {%- if message.role == 'system' or (loop.first and tools) %}
    {{- '<|system|>' }}{%- if message.role == 'system' %}{{- message.content }}{%- endif %}
    {%- if tools and loop.first %}{{- '<|tool|>' + (tools | tojson) + '<|/tool|>' }}{%- endif %}
    {{- '<|end|>' }}
  {%- endif %}
  {%- if message.role == 'assistant' and message.tool_calls %}
    {{- '<|assistant|><|tool_call|>[' }}
    {%- for call in message.tool_calls %}
      {{- '{"name": "' }}{{ call.function.name }}{{- '", "arguments": ' }}
      {{- call.function.arguments }}{{- '}' }}
      {%- if not loop.last %}{{- ', ' }}{%- endif %}
    {%- endfor %}
    {{- ']<|/tool_call|><|end|>' }}
  {%- elif message.role == 'tool' %}
    {{- '<|tool_response|>' + message.content + '<|/tool_response|><|end|>' }}
  {%- elif message.role != 'system' %}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""


@dataclass(frozen=True)
class Family:
    """A template and what is to be found out about it; no form where it shows no calls."""

    template: str
    tools: bool
    form: ToolForm | None


_DEEPSEEK = CallSyntax(
    begin="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    closing="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
    name_key="",
    arguments_key="",
)
_LLAMA = CallSyntax(opening="", closing="", separator="", arguments_key="parameters", several=False)
_MISTRAL = CallSyntax(begin="[TOOL_CALLS] [", opening="", closing="", separator=", ", end="]")
_PHI = CallSyntax(
    begin="<|tool_call|>[", opening="", closing="", separator=", ", end="]<|/tool_call|>"
)

FAMILIES = {
    "qwen2.5": Family(QWEN_2_5, True, ToolForm()),
    "qwen3": Family(QWEN_3, True, ToolForm()),
    "r1-distill": Family(
        R1_DISTILL,
        False,
        ToolForm(arguments="text", content="none", beside="apart", syntax=_DEEPSEEK),
    ),
    "r1-0528": Family(R1_0528, True, ToolForm(arguments="text", syntax=_DEEPSEEK)),
    "llama3": Family(LLAMA_3, True, ToolForm(beside="apart", several=False, syntax=_LLAMA)),
    "mistral": Family(MISTRAL, True, ToolForm(ids="short", beside="left out", syntax=_MISTRAL)),
    "gemma3": Family(GEMMA_3, False, None),
    # Nothing marks a call there, so what the model is held to is Hermes' way.
    "glm4": Family(
        GLM_4, True, ToolForm(arguments="text", result_role="observation", beside="apart")
    ),
    "phi4": Family(PHI_4, True, ToolForm(arguments="text", beside="apart", syntax=_PHI)),
}

__all__ = ["FAMILIES", "HERMES", "Family"]
