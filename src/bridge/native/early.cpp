// What is done before libtorch and libgomp start: ties to the launcher and to the working directory, how
// long threads wait in a loop, and the greeting of `dsr repl`. What a program registers in .preinit_array runs before the constructors of its libraries.
// Nothing here may allocate.
//
// A thread of libgomp that waits for the next operation looks for it in a loop, by default 300,000
// times, and so takes its core from whatever else runs. libgomp reads the limit from its environment
// in a constructor, and libc takes the environment that the kernel gave:
// so the program starts itself again, with the limit there.
//
// libtorch registers its operators in static constructors, which take longer than a prompt should. The
// greeting and the prompt stand there at once, and the terminal keeps what is typed until the line
// editor takes over and draws the same prompt in the same place.
#include <alloca.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

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

// Long enough for the pauses between two operations of a step, and too short to be felt by others.
char spin_count[] = "GOMP_SPINCOUNT=20000";

// Whether the command that is named runs a model, or starts processes that do.
bool computes(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] == '-') continue;
    for (const char* command : {"run", "repl", "eval", "launch", "generate", "chat", "score"}) {
      if (strcmp(argv[i], command) == 0) return true;
    }
    return false;
  }
  return false;
}

void limit_spinning(int argc, char** argv, char** environment) {
  if (!computes(argc, argv) || environment == nullptr) return;
  for (const char* chosen : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}) {
    if (value_of(environment, chosen) != nullptr) return;
  }
  const char* threads = value_of(environment, "OMP_NUM_THREADS");
  if (threads != nullptr && strcmp(threads, "1") == 0) return;
  size_t count = 0;
  while (environment[count] != nullptr) ++count;
  auto** with_limit = static_cast<char**>(alloca((count + 2) * sizeof(char*)));
  memcpy(with_limit, environment, count * sizeof(char*));
  with_limit[count] = spin_count;
  with_limit[count + 1] = nullptr;
  // Where this fails the program goes on without a limit.
  execve("/proc/self/exe", argv, with_limit);
}

bool say(const char* text, int where = STDOUT_FILENO) {
  const size_t length = strlen(text);
  return write(where, text, length) == static_cast<ssize_t>(length);
}

// A rank ends with its launcher: the system asks it to stop when the launcher is killed, and one that was
// killed before has left this process to another parent. The name is that of src/launch/mod.rs.
void follow_launcher(char** environment) {
  const char* launcher = value_of(environment, "DSR_LAUNCHER_PID");
  if (launcher == nullptr) return;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != atoi(launcher)) _exit(130);
}

// MKL, inside of libtorch, ends a process without a working directory, with words about itself.
void check_directory() {
  static char directory[PATH_MAX];
  if (getcwd(directory, sizeof directory) != nullptr || errno != ENOENT) return;
  say("error[E802]: the working directory does not exist any more\n"
      "   = change to a directory that does, and start again\n", STDERR_FILENO);
  _exit(4);
}

// The same words as Session::greet in src/repl/session.rs, and its prompt.
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

void start(int argc, char** argv, char** environment) {
  follow_launcher(environment);
  check_directory();
  // A file that would be larger than `ulimit -f` allows is an error of its writer.
  signal(SIGXFSZ, SIG_IGN);
  limit_spinning(argc, argv, environment);
  greet(argc, argv, environment);
}

__attribute__((section(".preinit_array"), used)) void (*const before_all)(int, char**, char**) = start;

}  // namespace

extern "C" bool dsr_greeted() { return greeted; }
