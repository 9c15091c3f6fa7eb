// Who is signed in, and what the relay says that it is called.

import { signal } from "@preact/signals";
import type { SignInView } from "./generated/api";

export const session = signal<SignInView | null>(null);
/** What an OpenAI SDK is given: the address that this page came from works for sure. */
export const baseUrl = `${location.origin}/v1`;
