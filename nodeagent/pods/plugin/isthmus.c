/* The last plugin of the CNI chain (CNI specification 1.1.0): tells the node's agent what the runtime does with a
 * pod, and hands the result of the plugins before it on. It decides nothing: the agent, at its Unix socket, does.
 *
 * Without an agent ADD, DEL, CHECK, GC and STATUS succeed, within the deadline below: packets pass without one, and
 * what it missed the agent finds in host-local's folder and on the links. Every size has a bound, nothing is
 * allocated, nothing is read but standard input, the environment and the socket, nothing written but these.
 *
 * To the agent:   "isthmus-cni/1\0", then CNI_… variables as "NAME=VALUE\0", "\0", standard input; end of stream.
 * From the agent: the exit code as decimal digits, "\n", and what is printed; end of stream. */

#include "system.h"

#ifndef AGENT_MS
#define AGENT_MS 3000 /* for the agent to answer, connection included */
#endif

enum {
  INPUT_MAX = 1 << 20,      /* bytes of configuration; a pod's result has less than 4,000 */
  VARIABLE_MAX = 8192,      /* bytes of one variable; longer ones are not passed on */
  HEAD_MAX = 6 * VARIABLE_MAX,
  ANSWER_MAX = 64 << 10,
  DEPTH_MAX = 64,           /* nested values in the configuration */
  INPUT_MS = 10000,         /* for the runtime to write its configuration */
  VERSION_MAX = 16,
};

static const char SUPPORTED[] = "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]";
static const char DEFAULT_SOCKET[] = "/var/lib/isthmus/agent/cni.sock";
/* Texts side by side, not pointers to them: nothing has to be relocated at the start. */
static const char PASSED[][17] = {"CNI_COMMAND=", "CNI_CONTAINERID=", "CNI_NETNS=", "CNI_IFNAME=", "CNI_ARGS="};

static char input[INPUT_MAX + 1], head[HEAD_MAX], answer[ANSWER_MAX + 1];
static size_t input_size, head_size, answer_size;

struct span { size_t from, to; }; /* of input; empty when from == to */

/* --- time and streams --- */

static long now_ms(void) {
  struct timespec now = {0, 0};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until the stream is ready; 0 when the deadline has passed. */
static int ready(int fd, short events, long deadline_ms) {
  for (;;) {
    long left = deadline_ms - now_ms();
    if (left <= 0) return 0;
    struct pollfd one = {fd, events, 0};
    long found = sys_poll(&one, left > 10000 ? 10000 : (int)left);
    if (found > 0) return 1;
    if (found < 0 && found != -EINTR) return 0;
  }
}

/* Reads to the end of the stream; its size, -1 on an error or when it is late, -2 when it is larger than max. */
static long read_all(int fd, char *into, size_t max, long deadline_ms) {
  size_t size = 0;
  for (;;) {
    if (!ready(fd, POLLIN, deadline_ms)) return -1;
    long got = sys_read(fd, into + size, max + 1 - size);
    if (got == -EINTR || got == -EAGAIN) continue;
    if (got < 0) return -1;
    if (got == 0) return (long)size;
    size += (size_t)got;
    if (size > max) return -2;
  }
}

static int send_all(int fd, const char *data, size_t size, long deadline_ms) {
  while (size) {
    if (!ready(fd, POLLOUT, deadline_ms)) return 0;
    long sent = sys_send(fd, data, size);
    if (sent == -EINTR || sent == -EAGAIN) continue;
    if (sent <= 0) return 0;
    data += sent;
    size -= (size_t)sent;
  }
  return 1;
}

static int print(const char *data, size_t size) {
  while (size) {
    long written = sys_write(1, data, size);
    if (written == -EINTR) continue;
    if (written <= 0) return 0;
    data += written;
    size -= (size_t)written;
  }
  return 1;
}

static int say(const char *text) { return print(text, strlen(text)); }

/* --- just enough of JSON: is it an object, and where is the value of one of its keys --- */

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static size_t skip_space(size_t at) {
  while (at < input_size && is_space(input[at])) at++;
  return at;
}

/* Behind the string that starts at `at`; 0 when there is none. */
static size_t skip_string(size_t at) {
  if (at >= input_size || input[at] != '"') return 0;
  for (at++; at < input_size; at++) {
    unsigned char c = (unsigned char)input[at];
    if (c < 0x20) return 0;
    if (c == '"') return at + 1;
    if (c == '\\' && ++at >= input_size) return 0;
  }
  return 0;
}

/* Behind a number or a word; 0 when there is neither. */
static size_t skip_scalar(size_t at) {
  static const char WORDS[][6] = {"true", "false", "null"};
  for (size_t i = 0; i < 3; i++) {
    size_t size = strlen(WORDS[i]);
    if (input_size - at >= size && !memcmp(input + at, WORDS[i], size)) return at + size;
  }
  size_t from = at;
  while (at < input_size && ((input[at] >= '0' && input[at] <= '9') || input[at] == '-' || input[at] == '+' ||
                             input[at] == '.' || input[at] == 'e' || input[at] == 'E'))
    at++;
  return at > from ? at : 0;
}

/* Behind the value that starts at `at`; 0 when it is malformed, cut, or nested too deep. Without recursion. */
static size_t skip_value(size_t at) {
  char closing[DEPTH_MAX];
  size_t depth = 0;
  for (;;) {
    at = skip_space(at);
    if (at >= input_size) return 0;
    if (input[at] == '{' || input[at] == '[') {
      if (depth == DEPTH_MAX) return 0;
      closing[depth] = input[at] == '{' ? '}' : ']';
      at = skip_space(at + 1);
      if (at < input_size && input[at] == closing[depth]) {
        at++;
      } else {
        depth++;
        if (closing[depth - 1] == '}') goto key;
        continue;
      }
    } else {
      at = input[at] == '"' ? skip_string(at) : skip_scalar(at);
      if (!at) return 0;
    }
    for (;;) { /* a value is over */
      if (!depth) return at;
      at = skip_space(at);
      if (at >= input_size) return 0;
      if (input[at] == ',') break;
      if (input[at] != closing[depth - 1]) return 0;
      depth--;
      at++;
    }
    at++;
    if (closing[depth - 1] != '}') continue;
  key:
    at = skip_string(skip_space(at));
    if (!at) return 0;
    at = skip_space(at);
    if (at >= input_size || input[at++] != ':') return 0;
  }
}

/* The value of a key of the object that the input is; the last one counts, as for Go. Empty when there is none. */
static struct span value_of(const char *key) {
  struct span found = {0, 0};
  size_t size = strlen(key), at = skip_space(skip_space(0) + 1);
  while (at < input_size && input[at] == '"') {
    size_t key_from = at + 1, key_to = skip_string(at) - 1;
    size_t from = skip_space(skip_space(key_to + 1) + 1), to = skip_value(from);
    if (key_to - key_from == size && !memcmp(input + key_from, key, size)) found = (struct span){from, to};
    at = skip_space(to);
    if (at >= input_size || input[at] != ',') break;
    at = skip_space(at + 1);
  }
  return found;
}

/* The text of a string without escapes; its size, 0 when it is none or larger than max. */
static size_t text_of(struct span value, char *into, size_t max) {
  if (value.to - value.from < 2 || input[value.from] != '"') return 0;
  size_t size = value.to - value.from - 2;
  if (size > max) return 0;
  for (size_t i = 0; i < size; i++) {
    char c = input[value.from + 1 + i];
    if (c == '\\' || c == '\0') return 0;
    into[i] = c;
  }
  return size;
}

static int is_object(void) {
  size_t from = skip_space(0), to;
  if (from >= input_size || input[from] != '{') return 0;
  to = skip_value(from);
  return to && skip_space(to) == input_size;
}

/* --- answers to the runtime --- */

/* The version of the configuration, as its errors carry it. */
static void print_version(void) {
  char version[VERSION_MAX];
  size_t size = is_object() ? text_of(value_of("cniVersion"), version, VERSION_MAX) : 0;
  for (size_t i = 0; i < size; i++)
    if (!(version[i] == '.' || (version[i] >= '0' && version[i] <= '9'))) size = 0;
  if (size) print(version, size);
  else say("1.0.0");
}

static int fail(const char *code, const char *message) {
  say("{\"cniVersion\":\"");
  print_version();
  say("\",\"code\":");
  say(code);
  say(",\"msg\":\"isthmus: ");
  say(message);
  say("\"}\n");
  return 1;
}

/* --- the agent --- */

static void put(const char *data, size_t size) {
  if (size > HEAD_MAX - head_size) return; /* cannot be: every part is bounded */
  memcpy(head + head_size, data, size);
  head_size += size;
}

static int starts(const char *text, const char *with) {
  while (*with)
    if (*text++ != *with++) return 0;
  return 1;
}

static void put_head(char **environment) {
  put("isthmus-cni/1", 14);
  for (size_t i = 0; i < sizeof PASSED / sizeof *PASSED; i++)
    for (char **variable = environment; *variable; variable++)
      if (starts(*variable, PASSED[i])) {
        size_t size = strlen(*variable);
        if (size < VARIABLE_MAX) put(*variable, size + 1);
        break; /* the first of a name counts, as for getenv */
      }
  put("", 1);
}

/* Asks the agent; the exit code that it says, or -1 when it is away, late or makes no sense. */
static int ask(void) {
  struct sockaddr_un place = {.sun_family = AF_UNIX};
  size_t size = text_of(value_of("socket"), place.sun_path, sizeof place.sun_path - 1);
  if (!size) memcpy(place.sun_path, DEFAULT_SOCKET, sizeof DEFAULT_SOCKET);
  long deadline_ms = now_ms() + AGENT_MS;
  int fd = (int)sys_socket();
  if (fd < 0 || sys_connect(fd, &place, sizeof place) < 0) return -1; /* a full queue, too: it does not wait */
  if (!send_all(fd, head, head_size, deadline_ms) || !send_all(fd, input, input_size, deadline_ms)) return -1;
  if (sys_shutdown(fd) < 0) return -1;
  long got = read_all(fd, answer, ANSWER_MAX, deadline_ms);
  if (got < 0) return -1;
  int code = 0;
  size_t at = 0;
  while (at < (size_t)got && at < 4 && answer[at] >= '0' && answer[at] <= '9') code = code * 10 + answer[at++] - '0';
  if (!at || at >= (size_t)got || answer[at++] != '\n') return -1;
  answer_size = (size_t)got - at;
  for (size_t i = 0; i < answer_size; i++) answer[i] = answer[at + i];
  return code;
}

int main(int count, char **arguments, char **environment) {
  (void)count, (void)arguments;
  const char *command = "";
  for (char **variable = environment; *variable; variable++)
    if (starts(*variable, "CNI_COMMAND=")) {
      command = *variable + 12;
      break;
    }
  long got = read_all(0, input, INPUT_MAX, now_ms() + INPUT_MS);
  if (got == -2) return fail("6", "the configuration has more than 1,048,576 bytes");
  if (got < 0) return fail("5", "the configuration cannot be read, or did not end within 10 s");
  input_size = (size_t)got;
  if (!memcmp(command, "VERSION", strlen(command) < 8 ? strlen(command) + 1 : 8)) {
    say("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":");
    say(SUPPORTED);
    say("}\n");
    return 0;
  }
  static const char COMMANDS[][7] = {"ADD", "DEL", "CHECK", "GC", "STATUS"};
  int known = 0;
  for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
    known |= strlen(command) == strlen(COMMANDS[i]) && starts(command, COMMANDS[i]);
  if (!known) return fail("4", "CNI_COMMAND is none of ADD, DEL, CHECK, GC, STATUS, VERSION");
  if (!is_object()) return fail("6", "the configuration is no JSON object, or nested deeper than 64");
  int adds = starts(command, "ADD");
  struct span result = value_of("prevResult");
  if (adds && (result.from == result.to || input[result.from] != '{'))
    return fail("7", "there is no prevResult: it is the last plugin of a chain, behind one that attaches the pod");
  put_head(environment);
  int code = ask();
  if (code > 0) {
    print(answer, answer_size);
    return 1;
  }
  if (adds && !(print(input + result.from, result.to - result.from) && say("\n"))) return 1;
  return 0;
}
