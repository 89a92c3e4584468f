/* The tables of sse.pyx: which member of an answer means what. A place is a container that is
 * followed; a slot is what a member of it is for. Everything else is skipped without being read. */
#ifndef WARMLANE_ANSWER_TEXT_H
#define WARMLANE_ANSWER_TEXT_H

#include "json_text.h"

enum { /* places; arrays from WL_ARRAYS on */
    WL_AT_ROOT, WL_AT_CHOICE, WL_AT_DELTA, WL_AT_USAGE, WL_AT_DETAILS, WL_AT_RESPONSE,
    WL_AT_STARTED, WL_AT_ROOT_DELTA, WL_AT_ITEM, WL_AT_PART, WL_AT_OBJECTS,
    WL_ARRAYS = WL_AT_OBJECTS,
    WL_AT_CHOICES = WL_ARRAYS, WL_AT_OUTPUT, WL_AT_CONTENT, WL_AT_TOKENS, WL_AT_PLACES
};

enum { /* slots */
    WL_IS_OTHER, WL_IS_ROOT, WL_IS_CHOICES, WL_IS_CHOICE, WL_IS_DELTA, WL_IS_USAGE, WL_IS_DETAILS,
    WL_IS_RESPONSE, WL_IS_STARTED, WL_IS_ROOT_DELTA, WL_IS_OUTPUT, WL_IS_ITEM, WL_IS_CONTENT,
    WL_IS_PART, WL_IS_TOKENS, WL_IS_ELEMENT,
    WL_IS_ERROR,  /* not null: the answer is an error */
    WL_IS_TEXT,   /* generated text */
    WL_IS_MARK,   /* generated, but not text that the next turn sends */
    WL_IS_FINISH, WL_IS_STATUS, WL_IS_TYPE, WL_IS_PART_TYPE,
    WL_IS_INDEX, WL_IS_PROMPT_COUNT, WL_IS_OUTPUT_COUNT, WL_IS_CACHED, WL_IS_CACHE_READ,
    WL_IS_CACHE_MADE
};

typedef struct { int place; const char *name; int slot; } wl_member_rule;

/* Sources: the OpenAI API (chat, completions, responses), the Anthropic Messages API, vLLM's and
 * SGLang's additions (reasoning, reasoning_content, token_ids). Sorted by place. */
static const wl_member_rule wl_member_rules[] = {
    {WL_AT_ROOT, "choices", WL_IS_CHOICES},
    {WL_AT_ROOT, "usage", WL_IS_USAGE},
    {WL_AT_ROOT, "error", WL_IS_ERROR},
    {WL_AT_ROOT, "type", WL_IS_TYPE},
    {WL_AT_ROOT, "delta", WL_IS_ROOT_DELTA},
    {WL_AT_ROOT, "response", WL_IS_RESPONSE},
    {WL_AT_ROOT, "message", WL_IS_STARTED},
    {WL_AT_ROOT, "output", WL_IS_OUTPUT},
    {WL_AT_ROOT, "content", WL_IS_CONTENT},
    {WL_AT_ROOT, "data", WL_IS_TOKENS},
    {WL_AT_ROOT, "status", WL_IS_STATUS},
    {WL_AT_ROOT, "stop_reason", WL_IS_FINISH},
    {WL_AT_CHOICE, "index", WL_IS_INDEX},
    {WL_AT_CHOICE, "delta", WL_IS_DELTA},
    {WL_AT_CHOICE, "message", WL_IS_DELTA},
    {WL_AT_CHOICE, "text", WL_IS_TEXT},
    {WL_AT_CHOICE, "finish_reason", WL_IS_FINISH},
    {WL_AT_CHOICE, "token_ids", WL_IS_TOKENS},
    {WL_AT_DELTA, "content", WL_IS_TEXT},
    {WL_AT_DELTA, "tool_calls", WL_IS_TOKENS},
    {WL_AT_DELTA, "reasoning", WL_IS_MARK},
    {WL_AT_DELTA, "reasoning_content", WL_IS_MARK},
    {WL_AT_DELTA, "refusal", WL_IS_MARK},
    {WL_AT_DELTA, "function_call", WL_IS_MARK},
    {WL_AT_DELTA, "audio", WL_IS_MARK},
    {WL_AT_USAGE, "prompt_tokens", WL_IS_PROMPT_COUNT},
    {WL_AT_USAGE, "input_tokens", WL_IS_PROMPT_COUNT},
    {WL_AT_USAGE, "completion_tokens", WL_IS_OUTPUT_COUNT},
    {WL_AT_USAGE, "output_tokens", WL_IS_OUTPUT_COUNT},
    {WL_AT_USAGE, "prompt_tokens_details", WL_IS_DETAILS},
    {WL_AT_USAGE, "input_tokens_details", WL_IS_DETAILS},
    {WL_AT_USAGE, "cache_read_input_tokens", WL_IS_CACHE_READ},
    {WL_AT_USAGE, "cache_creation_input_tokens", WL_IS_CACHE_MADE},
    {WL_AT_DETAILS, "cached_tokens", WL_IS_CACHED},
    {WL_AT_RESPONSE, "usage", WL_IS_USAGE},
    {WL_AT_RESPONSE, "error", WL_IS_ERROR},
    {WL_AT_RESPONSE, "status", WL_IS_STATUS},
    {WL_AT_STARTED, "usage", WL_IS_USAGE},
    {WL_AT_ROOT_DELTA, "text", WL_IS_TEXT},
    {WL_AT_ROOT_DELTA, "partial_json", WL_IS_MARK},
    {WL_AT_ROOT_DELTA, "thinking", WL_IS_MARK},
    {WL_AT_ROOT_DELTA, "stop_reason", WL_IS_FINISH},
    {WL_AT_ITEM, "content", WL_IS_CONTENT},
    {WL_AT_ITEM, "arguments", WL_IS_MARK},
    {WL_AT_PART, "type", WL_IS_PART_TYPE},
    {WL_AT_PART, "text", WL_IS_TEXT},
    {WL_AT_PART, "thinking", WL_IS_MARK},
    {WL_AT_PART, "input", WL_IS_MARK},
};

enum { WL_RULES = sizeof(wl_member_rules) / sizeof(wl_member_rules[0]) };

/* The slot of a member; the rules of one place are a run of the table. */
static inline int wl_slot_of(int place, const uint8_t *key, size_t size) {
    static const uint8_t start[WL_AT_OBJECTS + 1] = {0, 12, 18, 25, 33, 34, 37, 38, 42, 44, 48};
    for (int i = start[place]; i < start[place + 1]; i++) {
        const char *name = wl_member_rules[i].name;
        if ((uint8_t)name[0] == key[0] && strlen(name) == size && !memcmp(name, key, size))
            return wl_member_rules[i].slot;
    }
    return WL_IS_OTHER;
}

/* The place that an object or an array in a slot opens, or -1: skipped. */
static inline int wl_place_of(int slot, int array) {
    switch (slot) {
    case WL_IS_ROOT: return array ? -1 : WL_AT_ROOT;
    case WL_IS_CHOICES: return array ? WL_AT_CHOICES : -1;
    case WL_IS_CHOICE: return array ? -1 : WL_AT_CHOICE;
    case WL_IS_DELTA: return array ? -1 : WL_AT_DELTA;
    case WL_IS_USAGE: return array ? -1 : WL_AT_USAGE;
    case WL_IS_DETAILS: return array ? -1 : WL_AT_DETAILS;
    case WL_IS_RESPONSE: return array ? -1 : WL_AT_RESPONSE;
    case WL_IS_STARTED: return array ? -1 : WL_AT_STARTED;
    case WL_IS_ROOT_DELTA: return array ? -1 : WL_AT_ROOT_DELTA;
    case WL_IS_OUTPUT: return array ? WL_AT_OUTPUT : -1;
    case WL_IS_ITEM: return array ? -1 : WL_AT_ITEM;
    case WL_IS_CONTENT: return array ? WL_AT_CONTENT : -1;
    case WL_IS_PART: return array ? -1 : WL_AT_PART;
    case WL_IS_TOKENS: return array ? WL_AT_TOKENS : -1;
    default: return -1;
    }
}

/* What the elements of an array are. */
static inline int wl_element_of(int place) {
    switch (place) {
    case WL_AT_CHOICES: return WL_IS_CHOICE;
    case WL_AT_OUTPUT: return WL_IS_ITEM;
    case WL_AT_CONTENT: return WL_IS_PART;
    default: return WL_IS_ELEMENT;
    }
}

#endif
