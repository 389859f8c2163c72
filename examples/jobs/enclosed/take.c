/* Adds up what comes. */
#include <mvm.h>
#include <stdio.h>

int main(void) {
	mvm_port *numbers = mvm_open("numbers");
	long sum = 0;
	for (int i; mvm_dequeue(numbers, &i, sizeof i) == sizeof i;)
		sum += i;
	FILE *f = fopen("sum.txt", "w");
	fprintf(f, "%ld\n", sum);
	return fclose(f);
}
