"""Chat templates in the formats of Kimi K2 and GLM-4.7, written for these tests."""

KIMI_K2 = """\
{%- if tools -%}
<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and message.role != 'system' -%}
  <|im_system|>system<|im_middle|>You are Kimi.<|im_end|>
  {%- endif -%}
  {%- if message.role == 'assistant' -%}<|im_assistant|>
  {%- elif message.role == 'user' -%}<|im_user|>
  {%- else -%}<|im_system|>
  {%- endif -%}
  {{- message.name or message.role }}<|im_middle|>
  {%- if message.role == 'tool' -%}{{ '## Return of ' + message.tool_call_id + '\\n' }}{%- endif -%}
  {{- message.content -}}
  {%- if message.tool_calls -%}
  <|tool_calls_section_begin|>
  {%- for call in message.tool_calls -%}
  <|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|>
  {%- endfor -%}
  <|tool_calls_section_end|>
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
"""

GLM_47 = """\
[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}<|observation|>{%- endif -%}
<tool_response>{{ m.content }}</tool_response>
  {%- else -%}
  <|{{ m.role }}|>
  {%- endif -%}
  {%- if m.role == 'assistant' -%}
    {%- if m.reasoning_content -%}<think>{{ m.reasoning_content.strip() }}</think>{%- else -%}</think>{%- endif -%}
    {{- m.content.strip() -}}
    {%- for tc in m.tool_calls or [] -%}
<tool_call>{{ tc.function.name }}
      {%- for k, v in tc.function.arguments.items() -%}
<arg_key>{{ k }}</arg_key><arg_value>{{ v if v is string else v | tojson }}</arg_value>
      {%- endfor -%}
</tool_call>
    {%- endfor -%}
  {%- elif m.role != 'tool' -%}
    {{- m.content -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}
{%- endif -%}
"""
