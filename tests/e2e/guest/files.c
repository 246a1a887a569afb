// What programs do with files, in a directory given: mappings, files without a name, locks, renames.
// Prints a line for each that is not as on a local file system, or "ok".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	printf("%s: %s\n", what, strerror(errno));
	failed = 1;
}

// Two processes and one mapping; afterwards it is in the file.
static void shared_mapping(void)
{
	int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *page, buffer[5] = "";
	int status;

	check(fd >= 0 && ftruncate(fd, 8192) == 0, "size of a file");
	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(page != MAP_FAILED, "mmap shared");
	if (page == MAP_FAILED)
		return;
	if (fork() == 0) {
		// By its name, as another program would.
		int again = open("mapped", O_RDWR);
		char *same = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
		if (same == MAP_FAILED)
			_exit(1);
		memcpy(same + 4096, "child", 5);
		_exit(0);
	}
	wait(&status);
	check(status == 0 && memcmp(page + 4096, "child", 5) == 0, "another process's write to a mapping");
	check(msync(page, 8192, MS_SYNC) == 0, "msync");
	check(pread(fd, buffer, 5, 4096) == 5 && memcmp(buffer, "child", 5) == 0, "a mapping's write in the file");
	munmap(page, 8192);
	close(fd);
}

static void private_mapping(void)
{
	int fd = open("mapped", O_RDONLY);
	char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	check(page != MAP_FAILED && memcmp(page + 4096, "child", 5) == 0, "mmap private");
	close(fd);
}

static void without_a_name(void)
{
	struct stat st;
	char buffer[4];
	int fd = open("temporary", O_RDWR | O_CREAT | O_EXCL, 0600);

	check(fd >= 0 && unlink("temporary") == 0, "unlink an open file");
	check(write(fd, "0123456789", 10) == 10, "write to a file without a name");
	check(fstat(fd, &st) == 0 && st.st_size == 10 && st.st_nlink == 0, "fstat of a file without a name");
	check(ftruncate(fd, 4) == 0 && fstat(fd, &st) == 0 && st.st_size == 4, "ftruncate of a file without a name");
	check(fchmod(fd, 0400) == 0, "fchmod of a file without a name");
	check(pread(fd, buffer, 4, 0) == 4 && memcmp(buffer, "0123", 4) == 0, "read a file without a name");
	close(fd);
}

static void renames(void)
{
	struct stat st;
	int directory, fd;

	check(mkdir("a", 0700) == 0, "mkdir");
	directory = open("a", O_RDONLY | O_DIRECTORY);
	fd = openat(directory, "file", O_RDWR | O_CREAT, 0600);
	check(rename("a", "b") == 0, "rename a directory");
	check(fstat(fd, &st) == 0, "fstat below a directory that moved");
	check(faccessat(directory, "file", R_OK, 0) == 0, "a name in a directory that moved");
	check(write(fd, "x", 1) == 1, "write below a directory that moved");
	check(rename("b/file", "over") == 0 && stat("over", &st) == 0 && st.st_size == 1, "rename between directories");
	check(link("over", "linked") == 0 && stat("linked", &st) == 0 && st.st_nlink == 2, "hard link");
	check(rmdir("b") == 0, "rmdir");
	close(fd);
	close(directory);
}

// Each kind on a file of its own: by 9p, as by NFS, one excludes the other.
static void locks(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10 };
	int whole = open("flocked", O_RDWR | O_CREAT, 0600), range = open("locked", O_RDWR | O_CREAT, 0600), status;

	check(flock(whole, LOCK_EX) == 0, "flock");
	check(fcntl(range, F_SETLK, &lock) == 0, "fcntl lock");
	if (fork() == 0) {
		struct flock other = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 1 };
		if (flock(open("flocked", O_RDWR), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
			_exit(1);
		range = open("locked", O_RDWR);
		if (fcntl(range, F_SETLK, &other) == 0)
			_exit(2);
		other.l_start = 20;
		_exit(fcntl(range, F_SETLK, &other) == 0 ? 0 : 3);
	}
	wait(&status);
	check(status == 0, "locks of another process");
	check(flock(whole, LOCK_UN) == 0 && flock(open("flocked", O_RDWR), LOCK_EX | LOCK_NB) == 0, "flock after unlock");
	close(whole);
	close(range);
}

static void append(void)
{
	struct stat st;
	int one = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600), two = open("log", O_WRONLY | O_APPEND);

	for (int i = 0; i < 10; i++)
		check(write(one, "one\n", 4) == 4 && write(two, "two\n", 4) == 4, "append");
	check(stat("log", &st) == 0 && st.st_size == 80, "size after appends of two");
	close(one);
	close(two);
}

int main(int argc, char **argv)
{
	if (argc != 2 || chdir(argv[1]) != 0)
		return 2;
	shared_mapping();
	private_mapping();
	without_a_name();
	renames();
	locks();
	append();
	if (!failed)
		puts("ok");
	return failed;
}
