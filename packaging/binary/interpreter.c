/* CPython, embedded: isolated from everything that the machine could say to it, its modules in the file it came from.
 *
 * The launcher leaves IMPOUND_BOOT=<stage>,<descriptor of the file>,<descriptor of the stage's directory or -1>. The
 * module `impound_boot` does the rest. Ends with 71 where it was not started by the launcher.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define EXIT_NOT_STARTED 71

static void check(PyStatus status) {
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
}

int main(int argc, char **argv) {
    const char *boot = getenv("IMPOUND_BOOT");
    const char *comma = boot ? strchr(boot, ',') : NULL;
    wchar_t archive[48];
    if (!comma) {
        fputs("impound: this is a part of the program and is started by it alone\n", stderr);
        return EXIT_NOT_STARTED;
    }
    swprintf(archive, 48, L"/proc/self/fd/%d", atoi(comma + 1));
    prctl(PR_SET_NAME, "impound");

    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    check(Py_PreInitialize(&before));

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.optimization_level = 1;
    config.install_signal_handlers = 1;
    config.parse_argv = 0;
    config.pathconfig_warnings = 0;
    config.module_search_paths_set = 1;
    check(PyWideStringList_Append(&config.module_search_paths, archive));
    /* All that getpath would otherwise look for on the machine. */
    check(PyConfig_SetString(&config, &config.executable, L"/proc/self/exe"));
    check(PyConfig_SetString(&config, &config.base_executable, L"/proc/self/exe"));
    check(PyConfig_SetString(&config, &config.home, L"/proc/self/fd"));
    check(PyConfig_SetString(&config, &config.prefix, L""));
    check(PyConfig_SetString(&config, &config.exec_prefix, L""));
    check(PyConfig_SetString(&config, &config.base_prefix, L""));
    check(PyConfig_SetString(&config, &config.base_exec_prefix, L""));
    check(PyConfig_SetString(&config, &config.stdlib_dir, archive));
    check(PyConfig_SetString(&config, &config.platlibdir, L"lib"));
    check(PyConfig_SetBytesArgv(&config, argc, argv));
    PyStatus status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    check(status);

    PyObject *module = PyImport_ImportModule("impound_boot");
    int code = 0;
    if (!module) {
        PyErr_Print(); /* does not return on SystemExit */
        code = 3;
    }
    Py_XDECREF(module);
    return Py_FinalizeEx() < 0 ? 3 : code;
}
