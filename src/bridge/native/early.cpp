// The greeting of `dsr repl`, before libtorch starts.
//
// libtorch registers its operators in static constructors, which run before main and take longer
// than a prompt should. What a program registers in .preinit_array runs before them: the greeting
// and the prompt stand there at once, and the terminal keeps what is typed until the line editor
// takes over and draws the same prompt in the same place. Nothing here may allocate.
#include <unistd.h>

#include <csignal>
#include <cstring>

namespace {

bool greeted = false;

const char* value_of(char** environment, const char* name) {
  const size_t length = strlen(name);
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=') {
      return *environment + length + 1;
    }
  }
  return nullptr;
}

bool is_set(char** environment, const char* name) {
  const char* value = value_of(environment, name);
  return value != nullptr && *value != '\0';
}

bool say(const char* text) {
  const size_t length = strlen(text);
  return write(STDOUT_FILENO, text, length) == static_cast<ssize_t>(length);
}

// The same words as Session::greet in src/repl/mod.rs, and its prompt.
void greet(int argc, char** argv, char** environment) {
  const bool is_session = argc == 2 && strcmp(argv[1], "repl") == 0;
  if (!is_session || is_set(environment, "WORLD_SIZE")) return;
  if (isatty(STDIN_FILENO) == 0 || isatty(STDOUT_FILENO) == 0) return;
  const char* terminal = value_of(environment, "TERM");
  if (terminal == nullptr || strcmp(terminal, "dumb") == 0) return;
  const bool color = !is_set(environment, "NO_COLOR");
  const char* text = color ? "dsr " DSR_VERSION "   \x1b[2m:help   ?name   Tab   Ctrl-D\x1b[0m\n\x1b[1;32mdsr> \x1b[0m"
                           : "dsr " DSR_VERSION "   :help   ?name   Tab   Ctrl-D\ndsr> ";
  greeted = say(text);
  // Ctrl-C gives up a line, also before there is a line editor.
  if (greeted) signal(SIGINT, SIG_IGN);
}

__attribute__((section(".preinit_array"), used)) void (*const before_all)(int, char**, char**) = greet;

}  // namespace

extern "C" bool dsr_greeted() { return greeted; }
