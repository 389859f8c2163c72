/* Sends the numbers from 1 on, and says which machine it thinks that it is on. */
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
	mvm_port *numbers = mvm_open("numbers");
	int count = argc > 1 ? atoi(argv[1]) : 2000;
	char name[100];
	for (int i = 1; i <= count; i++)
		if (mvm_enqueue(numbers, &i, sizeof i) < 0)
			return 1;
	gethostname(name, sizeof name);
	printf("gave all in %s\n", name);
	return 0;
}
