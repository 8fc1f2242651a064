// What control groups leave: both versions, the tightest group on the way to the root, containers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "frontend/cgroup.h"

struct tree {
    char root[32], list[64];
};

static int make_tree(void **state)
{
    struct tree *t = calloc(1, sizeof *t);
    assert_non_null(t);
    strcpy(t->root, "/tmp/cgroup-XXXXXX");
    assert_non_null(mkdtemp(t->root));
    snprintf(t->list, sizeof t->list, "%s/list", t->root);
    *state = t;
    return 0;
}

static int remove_tree(void **state)
{
    struct tree *t = *state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", t->root);
    assert_int_equal(system(command), 0);
    free(t);
    return 0;
}

static void put(const struct tree *t, const char *path, const char *text)
{
    char command[256], full[128];
    snprintf(full, sizeof full, "%.31s/%.90s", t->root, path);
    snprintf(command, sizeof command, "mkdir -p $(dirname %s)", full);
    assert_int_equal(system(command), 0);
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct cgroup_limits limits(const struct tree *t)
{
    return cgroup_limits(t->list, t->root);
}

static void no_files_set_no_limit(void **state)
{
    const struct tree *t = *state;
    assert_true(limits(t).cpus == 0);
    assert_int_equal(limits(t).memory_bytes, UINT64_MAX);
    put(t, "list", "0::/nowhere\n");
    assert_true(limits(t).cpus == 0);
    assert_int_equal(limits(t).memory_bytes, UINT64_MAX);
}

static void version_2_takes_the_tightest_group(void **state)
{
    const struct tree *t = *state;
    put(t, "list", "0::/a/b\n");
    put(t, "a/b/cpu.max", "max 100000\n");
    put(t, "a/cpu.max", "50000 100000\n");
    put(t, "a/b/memory.max", "max\n");
    put(t, "a/b/memory.current", "1000\n");
    put(t, "a/memory.max", "100000\n");
    put(t, "a/memory.current", "70000\n");
    put(t, "a/memory.stat", "anon 1\ninactive_file 20000\n");
    assert_true(limits(t).cpus == 0.5);
    assert_int_equal(limits(t).memory_bytes, 50000);
    put(t, "a/b/cpu.max", "25000 100000\n");
    assert_true(limits(t).cpus == 0.25);
}

static void version_1_has_a_hierarchy_for_each(void **state)
{
    const struct tree *t = *state;
    put(t, "list", "5:cpuset:/x\n4:cpu,cpuacct:/c\n3:memory:/m\n1:name=systemd:/\n");
    put(t, "cpu/c/cpu.cfs_quota_us", "150000\n");
    put(t, "cpu/c/cpu.cfs_period_us", "100000\n");
    put(t, "memory/memory.limit_in_bytes", "9223372036854771712\n");
    put(t, "memory/memory.usage_in_bytes", "5\n");
    put(t, "memory/m/memory.limit_in_bytes", "4096\n");
    put(t, "memory/m/memory.usage_in_bytes", "8192\n");
    assert_true(limits(t).cpus == 1.5);
    assert_int_equal(limits(t).memory_bytes, 0);
    put(t, "cpu/c/cpu.cfs_quota_us", "-1\n");
    put(t, "memory/m/memory.limit_in_bytes", "9223372036854771712\n");
    assert_true(limits(t).cpus == 0);
    assert_int_equal(limits(t).memory_bytes, UINT64_MAX);
}

static void a_container_that_sees_only_the_root_has_its_limits(void **state)
{
    const struct tree *t = *state;
    put(t, "list", "0::/outside/of/it\n");
    put(t, "cpu.max", "200000 100000\n");
    put(t, "memory.max", "300\n");
    put(t, "memory.current", "100\n");
    assert_true(limits(t).cpus == 2);
    assert_int_equal(limits(t).memory_bytes, 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_files_set_no_limit, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(version_2_takes_the_tightest_group, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(version_1_has_a_hierarchy_for_each, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(a_container_that_sees_only_the_root_has_its_limits, make_tree,
                                        remove_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
