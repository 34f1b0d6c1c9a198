/* The C interface of the C++ runner, for programs in any language. docs/guides/embed.md shows how to use it.
 *
 * A session is one loaded package and one conversation. Every function may be called from any thread, and for several
 * sessions at once. Calls for one session take turns: one that computes makes the others wait. Only llava_cancel never
 * waits. An answer belongs to its session, not to the thread that began it.
 *
 * Strings are UTF-8 and end with a zero byte. Structures begin with their size, so that a program which was compiled
 * with an older version of this file goes on working: write `llava_ask_options options = {sizeof(options)};`. All
 * fields that are left zero have their defaults, and a null pointer to options stands for all defaults.
 */
#ifndef LLAVA_H
#define LLAVA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLAVA_API __attribute__((visibility("default")))

/* The number of an open session. Numbers are not used again, so a closed session is always noticed. */
typedef int64_t llava_session;

typedef enum llava_status {
  LLAVA_OK = 0,
  LLAVA_END = 1,           /* of llava_next and llava_logits alone: the answer has ended */
  LLAVA_PACKAGE_ERROR = 2, /* a file of the package is missing or damaged, or they do not belong together */
  LLAVA_IMAGE_ERROR = 3,   /* what was given is no image, or one that the model cannot see */
  LLAVA_PROMPT_ERROR = 4,  /* a text or an option that cannot be used */
  LLAVA_STATE_ERROR = 5,   /* a saved conversation is missing, damaged or of another program, or cannot be written */
  LLAVA_MISUSE = 6,        /* a null pointer, a wrong size, a session that is closed, a call from a forked process */
  LLAVA_BUSY = 7,          /* the callback of llava_ask called for its own session; only llava_cancel may be */
  LLAVA_NO_MEMORY = 8,
  LLAVA_BUG = 9 /* of this library; please report it */
} llava_status;

/* Returns the version of this library, such as "1.0.0". */
LLAVA_API const char* llava_version(void);

/* Returns what went wrong in the newest call of this thread that did not return LLAVA_OK, in one line: what, where, and
 * what to do next. It is valid until this thread's next call. */
LLAVA_API const char* llava_error(void);

typedef struct llava_open_options {
  size_t struct_size;
  const char* tokenizer_path;    /* NULL: tokenizer.bin or tokenizer.json in the program's folder */
  const char* packed_cache_path; /* folder of packed weights; NULL: the program's folder; "off": none */
  int32_t cpu_threads;           /* for the whole process, to be chosen before the first open; 0: ExecuTorch chooses */
  int32_t check;                 /* not 0: compare all of the program with its manifest first */
  const char* draft_model_path;  /* the package of a small model that guesses tokens for this one, its folder or its
                                    .pte. It must have the same tokenizer; no answer depends on it. NULL: tokens are
                                    guessed by what was said before */
} llava_open_options;

/* Opens a package: its folder, or its .pte. Writes the session's number. */
LLAVA_API llava_status llava_open(const char* package, const llava_open_options* options, llava_session* session);

/* Ends the answer that is being made, waits for the calls that use the session, and frees its memory. */
LLAVA_API llava_status llava_close(llava_session session);

/* Adds an image to the next turn: the content of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file. The image is decoded
 * and scaled before the call returns, and the bytes are not needed any more. */
LLAVA_API llava_status llava_add_image(llava_session session, const void* bytes, size_t size);

/* Adds an image to the next turn: RGB pixels, 3 bytes each, in rows from the top that are `row_bytes` apart. */
LLAVA_API llava_status
llava_add_pixels(llava_session session, const uint8_t* rgb, int32_t width, int32_t height, size_t row_bytes);

/* Adds an image to the next turn as the vision encoder reads it, which is not scaled: all of red, then green, then
 * blue, in rows from the top, one byte each. */
LLAVA_API llava_status llava_add_tensor(llava_session session, const uint8_t* chw, int32_t width, int32_t height);

/* Forgets the images that were added since the last turn. */
LLAVA_API llava_status llava_remove_images(llava_session session);

/* Reads the added images now, while the user still types: then the next turn begins sooner. An answer that is being
 * made is ended. */
LLAVA_API llava_status llava_read_ahead(llava_session session);

typedef struct llava_ask_options {
  size_t struct_size;
  int32_t new_conversation; /* 0: the text is the next question, whatever is in it. Not 0: it begins a new conversation,
                               and may be a whole prompt, with <image> in it or the assistant's cue */
  int32_t max_new_tokens;   /* 0: as many as the context has room for */
  int32_t seq_len;          /* most positions of the conversation with its answer; 0: the context */
  int32_t has_seed;         /* not 0: use `seed`, so that sampling can be repeated */
  uint64_t seed;
  double temperature; /* 0: the most likely token is taken */
  double top_p;       /* 0: 1 */
  int32_t top_k;      /* keeps so many of the most likely tokens; 0: all */
  int32_t num_stops;
  const char* const* stops;  /* texts before which the answer ends, `num_stops` of them */
  double min_p;              /* keeps tokens that are at least so many times as likely as the most likely one */
  double repetition_penalty; /* above 1 makes tokens less likely that the conversation has; 0: 1 */
  int32_t logprobs;          /* not 0: keep how likely each token was, for llava_last_logprobs */
  int32_t top_logprobs;      /* then also so many of the tokens that were the most likely in its place */
  int32_t draft_max;         /* guess up to so many tokens at a time, at most 15, and check them at once; no choice
                                depends on it. 0: 7; negative: guess none */
} llava_ask_options;

/* Takes the next turn: reads the added images and the text. llava_next then computes the answer. After an error the
 * conversation and the added images are as before. */
LLAVA_API llava_status llava_begin(llava_session session, const char* text, const llava_ask_options* options);

/* Computes the next token of the answer. Writes the text that can be shown by now, often none, and its number of bytes;
 * `length` may be null. The text is valid until this thread's next call. Returns LLAVA_END after the answer. */
LLAVA_API llava_status llava_next(llava_session session, const char** text, size_t* length);

/* Called with each piece of an answer's text. Returns 0 to go on, anything else to end the answer. It may call
 * llava_cancel; all other calls for its session are refused. It must not throw, nor leave by longjmp. */
typedef int32_t (*llava_on_text)(void* user_data, const char* text, size_t length);

/* Takes the next turn as llava_begin does, and calls `on_text`, which may be null, with each piece of the answer. No
 * other thread's turn comes between. */
LLAVA_API llava_status llava_ask(
    llava_session session, const char* text, const llava_ask_options* options, llava_on_text on_text, void* user_data);

/* Puts a text in place of the newest answer, as if the model had written it; the next turn goes on from there. So a
 * conversation that was had elsewhere is read: llava_begin with each question, then this with the answer it got. */
LLAVA_API llava_status llava_set_answer(llava_session session, const char* text);

/* Ends the answer that is being made, from any thread: after the token, or the prompt, that is being computed. */
LLAVA_API llava_status llava_cancel(llava_session session);

/* Forgets the conversation, its answer and the added images. */
LLAVA_API llava_status llava_reset(llava_session session);

/* Writes a pointer to the logits that the next token will be chosen by, and their number, the vocabulary's size. They
 * may be changed: -INFINITY rules a token out. The pointer is valid until the next call for this session. Returns
 * LLAVA_END after the answer. If all tokens are ruled out, llava_next returns LLAVA_MISUSE. */
LLAVA_API llava_status llava_logits(llava_session session, float** logits, size_t* count);

typedef enum llava_stop_reason {
  LLAVA_NOT_STOPPED = 0,
  LLAVA_STOP_EOS = 1,       /* the model has said all */
  LLAVA_STOP_LENGTH = 2,    /* max_new_tokens or seq_len is reached */
  LLAVA_STOP_CONTEXT = 3,   /* the KV cache is full */
  LLAVA_STOP_CANCELLED = 4, /* by llava_cancel, or by the callback */
  LLAVA_STOP_STRING = 5,    /* a stop string has come */
} llava_stop_reason;

/* Milliseconds, and how much was done in them. */
typedef struct llava_stage {
  double ms;
  int32_t count;
} llava_stage;

typedef struct llava_answer {
  size_t struct_size;
  int32_t stop_reason; /* a llava_stop_reason */
  int32_t num_tokens;
  llava_stage load;     /* of the package */
  llava_stage image;    /* positions of images that were encoded */
  llava_stage prompt;   /* positions that were read, images' among them; not those that the KV cache had already */
  llava_stage sample;   /* tokens */
  llava_stage eval;     /* tokens */
  int32_t num_drafted;  /* tokens that were guessed */
  int32_t num_accepted; /* and were right */
} llava_answer;

/* Describes the newest answer as far as it has come. */
LLAVA_API llava_status llava_last(llava_session session, llava_answer* answer);

/* Writes the token ids of the newest answer, at most `capacity` of them, and how many there are. */
LLAVA_API llava_status llava_last_ids(llava_session session, int32_t* ids, size_t capacity, size_t* count);

/* A token, and the natural logarithm of its probability by the model's own logits. */
typedef struct llava_logprob {
  int32_t id;
  double logprob;
} llava_logprob;

/* Writes how likely a token of the newest answer was: first itself, then the most likely ones in its place, at most
 * `capacity` in all, and how many there are. There are none if the answer was not asked for with `logprobs`. */
LLAVA_API llava_status
llava_last_logprobs(llava_session session, size_t token, llava_logprob* found, size_t capacity, size_t* count);

typedef struct llava_info {
  size_t struct_size;
  int32_t position;         /* positions that the conversation takes */
  int32_t context;          /* positions that there are */
  int32_t num_image_tokens; /* positions that an image takes */
  int32_t image_size;       /* sides of what the vision encoder sees, in pixels */
  int32_t vocab_size;
} llava_info;

/* Describes a session and its model. */
LLAVA_API llava_status llava_describe(llava_session session, llava_info* info);

/* Writes the model card, in JSON: all that the package says of its model. It is valid until the session is closed. */
LLAVA_API llava_status llava_model_card(llava_session session, const char** json);

/* Writes how many tokens a text has, alone and without a template. */
LLAVA_API llava_status llava_count_tokens(llava_session session, const char* text, size_t* count);

/* Keeps the conversation in a file. One that exists is replaced once the new one is whole. The answer's text is part of
 * it as far as it has come. */
LLAVA_API llava_status llava_save(llava_session session, const char* path);

/* Goes on with a conversation that was saved by a session of the same program, in any process. What is damaged or of
 * another program is refused, and the conversation stays as it was. */
LLAVA_API llava_status llava_restore(llava_session session, const char* path);

/* The same in memory. llava_save_bytes writes how many bytes there are, and these if they fit into `capacity`: call it
 * first with null and 0 to learn the number. */
LLAVA_API llava_status llava_save_bytes(llava_session session, void* bytes, size_t capacity, size_t* size);
LLAVA_API llava_status llava_restore_bytes(llava_session session, const void* bytes, size_t size);

#ifdef __cplusplus
}
#endif

#endif
